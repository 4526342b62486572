"""``hwopt search`` as a user runs it: on the bundled digits, killed, resumed, and given nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from hwopt.cli.search import _code, _lines
from hwopt.config.profile import load
from hwopt.core.crossings import SEARCH_NAMES, VARIABLE
from hwopt.engine.pipeline import run
from hwopt.errors import ConfigError
from hwopt.search.session import Wish as SearchWish
from hwopt.search.session import search
from hwopt.store.store import Store
from tests.conftest import Command, Outcome, hwopt

# A data set whose test split is nonsense: whoever looks at it while searching finds an accuracy of a tenth.
DATA = """\
import numpy as np
from sklearn.datasets import load_digits

def load():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return {"x_train": x[:1000], "y_train": y[:1000], "x_test": x[1000:], "y_test": (y[1000:] + 1) % 10}
"""
PROFILE = """\
name: nonsense-test
threads: 1
data: {factory: "my_data:load"}
model: {name: mlp, hidden: [16]}
train: {epochs: 3, batch_size: 32, optimizer: {lr: 1.0e-2}}
benchmark: {budget_seconds: 0.2, processes: 1}
candidates: {float: []}
targets: [host-cpu]
requirements: [{metric: macs, max: 3000}]
search:
  sampler: tpe
  trials: 4
  objectives: [{metric: accuracy}, {metric: file_bytes}]
  space:
    model.hidden.0: {one_of: [8, 16, 24, 32, 64]}
    train.optimizer.lr: {log: [1e-3, 3e-2]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search")
    (path / "my_data.py").write_text(DATA)
    (path / "search.yaml").write_text(PROFILE)
    return path


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    return hwopt("search", "search.yaml", "--json", cwd=folder)


def test_it_finds_and_judges(outcome: Outcome, folder: Path) -> None:
    found = outcome.json
    assert outcome.code == 0, outcome.err
    assert found["counts"]["ok"] == 4
    wide = [t for t in found["trials"] if t["sample"]["model.hidden.0"] == 64]
    assert wide
    assert all(t["status"] == "infeasible" and "accuracy" not in t["values"] for t in wide)
    winner = found["trials"][found["winner"]]
    hidden = winner["sample"]["model.hidden.0"]
    assert winner["values"]["macs"]["estimate"] == 64 * hidden + 10 * hidden
    assert winner["number"] in found["front"]
    assert set(found["importance"]) == {"model.hidden.0", "train.optimizer.lr"}


def test_the_test_split_is_read_once_and_last(outcome: Outcome) -> None:
    found = outcome.json
    trained = [t for t in found["trials"] if t["status"] == "ok"]
    assert max(t["values"]["accuracy"]["estimate"] for t in trained) > 0.8
    shipped = next(r for r in found["record"]["results"] if r["candidate"] == "float")
    assert shipped["accuracy"] < 0.2
    labels = [s["label"] for s in found["record"]["steps"] if s["stage"] == "evaluate"]
    assert labels == ["evaluate float on host-cpu"]


def test_the_winners_profile_stands_by_itself(outcome: Outcome, folder: Path) -> None:
    assert outcome.code == 0
    path = folder / ".hwopt" / "search" / "nonsense-test" / "winner.yaml"
    text = path.read_text()
    (folder / "winner.yaml").write_text(text)
    profile: Any = load(folder / "winner.yaml")
    winner = outcome.json["trials"][outcome.json["winner"]]["sample"]
    assert profile.model.options["hidden"][0] == winner["model.hidden.0"]
    assert profile.source.config.optimizer.lr == winner["train.optimizer.lr"]
    assert profile.search is None
    kept = json.loads((path.parent / "search.json").read_text())
    assert kept["winner"] == outcome.json["winner"]


def test_again_it_has_nothing_to_do(outcome: Outcome, folder: Path) -> None:
    again = hwopt("search", "search.yaml", "--json", "--no-refit", cwd=folder)
    assert again.code == 0, again.err
    assert again.json["trials"] == outcome.json["trials"]
    study = optuna.load_study(
        study_name="nonsense-test", storage=f"sqlite:///{folder}/.hwopt/search/search.db"
    )
    assert len(study.trials) == len(again.json["trials"])
    assert {t.number for t in study.best_trials} >= set(again.json["front"])


@pytest.mark.slow
@pytest.mark.parametrize("place", [f"{name}:2" for name in SEARCH_NAMES if name.startswith("search.")])
def test_killed_it_goes_on(place: str, folder: Path, outcome: Outcome) -> None:
    store = folder / place.partition(":")[0]
    killed = hwopt("search", "search.yaml", "--no-refit", "--store", store, cwd=folder, env={VARIABLE: place})
    assert killed.code == -signal.SIGKILL, killed.err
    after = hwopt("search", "search.yaml", "--no-refit", "--json", "--store", store, cwd=folder)
    assert after.code == 0, after.err
    facts = [(t["sample"], t["status"], t["values"]) for t in after.json["trials"]]
    assert facts == [(t["sample"], t["status"], t["values"]) for t in outcome.json["trials"]]


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on(folder: Path) -> None:
    store = folder / "interrupted"
    command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]
    with subprocess.Popen(
        [*command, "--store", str(store)], cwd=folder, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trial 0: ok" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
        assert process.wait(60) == 130, said
    assert "goes on from there" in said
    kept = json.loads((store / "search" / "nonsense-test" / "search.json").read_text())
    assert kept["trials"][0]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--set", "search.space.train.optimizer.lr=3"), 2, "unknown key 'optimizer'"),
        (
            (
                *("--set", "requirements=[{metric: macs, max: 10}]"),
                *("--set", "search.space={model.hidden.0: {one_of: [8, 16]}}"),
            ),
            2,
            "none of 2 versions",
        ),
        (
            ("--set", "requirements=[{metric: macs, max: 10}, {metric: macs, min: 20}]"),
            2,
            "no version can be both",
        ),
        (("--set", "targets=[generic-gpu-nowhere]"), 2, "generic-gpu-nowhere"),
        (("--storage", "postgresql://somebody:secret@127.0.0.1:9/nowhere"), 2, "cannot be reached"),
        (("--storage", "mysql://here/there"), 2, "no storage that a search can use"),
        (("--storage", "sqlite:////no/such/folder/x.db"), 2, "cannot be reached"),
        (("--storage", "grpc://127.0.0.1:9"), 2, "no storage server answers"),
        (("--crew", "queue"), 2, "--storage postgresql://"),
        (("--join",), 2, "--storage postgresql://"),
        (("--study", "nonsense-test", "--set", "train.epochs=5"), 2, "another profile"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_trained(
    arguments: tuple[str, ...], code: int, says: str, folder: Path, outcome: Outcome, command: Command
) -> None:
    store = (".hwopt",) if "--study" in arguments else ("refused",)
    before = {p.name for p in (folder / store[0] / "steps").glob("*")}
    found = hwopt("search", "search.yaml", "--store", *store, *arguments, cwd=folder)
    assert (found.code, says in found.err) == (code, True), found.err
    assert "secret" not in found.err
    assert "Traceback" not in found.err
    labels = [
        json.loads(p.read_text())["label"]
        for p in (folder / store[0] / "steps").glob("*")
        if p.name not in before
    ]
    assert not [label for label in labels if label.startswith("train")]


SHARED = """\
name: shared
threads: 1
data: {name: digits}
model: {name: mlp, hidden: [64]}
train: {epochs: 2, batch_size: 64}
benchmark: {budget_seconds: 0.2, processes: 1}
candidates: {fp32: [], int8: [{quantize: {method: ptq}}]}
targets: [host-cpu]
requirements: [{metric: file_bytes, min: 14000}]
"""


def test_the_float_model_does_not_pass_in_the_winners_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for ship, verdict, choice in ((None, "PASS", "fp32"), ("int8", "FAIL", None)):
        (tmp_path / "p.yaml").write_text(SHARED + (f"ship: {ship}\n" if ship else ""))
        _, record = run(load(tmp_path / "p.yaml"), store, lambda text: None)
        assert record["verdict"] == verdict
        assert record["choice"] == {"host-cpu": choice}
        (float_row,) = [r for r in record["results"] if r["candidate"] == "fp32"]
        assert float_row["verdict"] == (None if ship else "PASS")


def _found(*statuses: str, winner: int | None = None) -> dict[str, Any]:
    value = {"estimate": 0.5, "low": 0.5, "high": 0.5, "tier": "measured"}
    trials = [
        {"number": i, "status": s, "values": {"macs": {**value, "estimate": 1.0 + i}}, "sample": {"a.b": i},
         "keeps_limits": i == winner}
        for i, s in enumerate(statuses)
    ]  # fmt: skip
    return {
        "winner": winner, "trials": trials, "front": [winner], "importance": {}, "ended": "x", "limits": ["macs ≤ 9"],
        "objectives": [{"metric": "macs", "goal": "min"}], "surely_keeps_limits": True,
        "surely_better_than_defaults": None, "counts": {"ok": len(statuses)},
    }  # fmt: skip


def test_exit_codes() -> None:
    assert _code(_found("ok", "infeasible")) == 1
    assert _code(_found("failed", "infeasible")) == 5
    assert _code(_found("infeasible", "running")) == 8
    assert _code(_found()) == 8
    assert _code(_found("ok", winner=0)) == 0
    away = {**_found("ok", winner=0), "not_run": "this machine is another"}
    assert _code(away) == 3
    assert "INCONCLUSIVE: the winner was not run here: this machine is another" in "\n".join(_lines(away))


def test_the_winner_stands_first_and_what_misses_the_limits_says_so() -> None:
    lines = _lines(_found(*["ok"] * 14, winner=13))
    assert lines[2].split() == ["13", "14", "winner", "b", "13"]
    assert all("misses limits" in line for line in lines[3:12])


def test_a_worker_is_not_told_what_the_lead_is(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(PROFILE)
    (tmp_path / "my_data.py").write_text(DATA)
    for words, says in (
        (["--crew", "ray"], "--crew is for the lead"),
        (["--no-refit"], "--no-refit is for the lead"),
    ):
        found = hwopt("search", "search.yaml", "--join", *words, cwd=tmp_path)
        assert (found.code, says in found.err) == (2, True), found.err


@pytest.mark.slow
def test_an_interrupted_search_says_so_on_its_page(folder: Path, outcome: Outcome) -> None:
    assert outcome.code == 0
    page = folder / ".hwopt" / "search" / "stopped" / "report.html"
    command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]
    with subprocess.Popen(
        [*command, "--study", "stopped", "--set", "seed=7"], cwd=folder, stderr=subprocess.PIPE
    ) as going:
        assert going.stderr is not None
        while b"trial 0:" not in going.stderr.readline():
            pass
        going.send_signal(signal.SIGINT)
        going.communicate(timeout=60)
    assert going.returncode == 130
    text = page.read_text()
    assert "the same command goes on" in text
    assert 'http-equiv="refresh"' not in text


def test_only_a_candidate_can_be_shipped(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SHARED + "ship: int9\n")
    with pytest.raises(ConfigError, match=r"ship names 'int9', which is no candidate") as caught:
        load(tmp_path / "p.yaml")
    assert f"{tmp_path}/p.yaml:10" in str(caught.value)
    assert "int8" in str(caught.value)


def test_a_lead_that_was_stopped_before_it_knew_anything_leaves_the_page(
    folder: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome.code == 0
    page = folder / ".hwopt" / "search" / "nonsense-test" / "report.html"
    before = page.read_text()

    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("hwopt.search.ledger.Ledger.trials", interrupted)
    monkeypatch.chdir(folder)
    with pytest.raises(KeyboardInterrupt):
        search(load(Path("search.yaml")), Store(Path(".hwopt")), lambda text: None, SearchWish())
    assert page.read_text() == before
