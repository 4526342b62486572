"""Fixtures that many tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from hwopt.cli.main import main
from hwopt.engine.prepare import probe
from hwopt.plugins import table

ROOT = Path(__file__).parent.parent
SHARED_DATA = Path(os.environ.get("HWOPT_TEST_DATA", ROOT.parent / "shared" / "data"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write goldens anew, then read the diff")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs_data"):
        folder = SHARED_DATA / mark.args[0]
        if not folder.is_dir():
            pytest.skip(f"the shared data set {mark.args[0]} is not here (looked in {SHARED_DATA})")
    for mark in item.iter_markers("needs_runtime"):
        name = mark.args[0]
        if name not in table("backend"):
            pytest.skip(f"no backend {name}")
        state = probe(name)
        if not state.available:
            pytest.skip(f"{name}: {state.reason}")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


def hwopt(*arguments: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Outcome:
    """Run the command line in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", "from hwopt.cli.main import main; main()", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


class Command(Protocol):
    """The command line, called in this process: faster where a process of its own shows nothing more."""

    def __call__(self, *arguments: str | Path) -> Outcome: ...


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hwopt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return call


@dataclass(frozen=True)
class DigitsRun:
    """The main job, run once for all tests that look at it."""

    store: Path
    record: dict[str, Any]
    code: int

    def row(self, candidate: str, target: str) -> dict[str, Any]:
        (found,) = (
            r for r in self.record["results"] if r["candidate"] == candidate and r["target"] == target
        )
        return dict(found)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> DigitsRun:
    store = tmp_path_factory.mktemp("digits") / "store"
    outcome = hwopt("pipeline", "run", "pipelines/digits.yaml", "--store", store, "--json", "-q")
    assert outcome.out, outcome.err
    return DigitsRun(store=store, record=outcome.json, code=outcome.code)
