"""Help is light and cannot go stale."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hwopt.cli.main import _COMMANDS, cli
from tests.conftest import ROOT, hwopt

HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "numpy", "pydantic", "sklearn", "yaml"}
GOLDENS = ROOT / "tests" / "goldens"


def modules_after(arguments: list[str]) -> set[str]:
    code = (
        "import sys\nfrom hwopt.cli.main import main\n"
        f"sys.argv = ['hwopt', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('MODULES', ' '.join(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.rpartition("MODULES ")[2].split())


def test_help_loads_no_heavy_library() -> None:
    assert modules_after(["--help"]).isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["runs", "list"], ["hardware", "list"], ["doctor"]])
def test_light_commands_load_no_tensor_library(arguments: list[str], tmp_path: Path) -> None:
    loaded = modules_after([*arguments, *(["--store", str(tmp_path)] if arguments[0] == "runs" else [])])
    assert loaded.isdisjoint({"torch", "onnx", "onnxruntime", "sklearn"})


def test_help_answers_within_its_cpu_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert hwopt("--help").code == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # 0.3 s is promised; twice that tells a heavy import from a slow machine. torch alone costs over 1 s.
    assert spent < 0.6


def test_every_command_has_help() -> None:
    for name in _COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, name
        assert len(result.output) > 100, name


def test_help_golden(request: pytest.FixtureRequest) -> None:
    text = CliRunner().invoke(cli, ["--help"], prog_name="hwopt", terminal_width=100).output
    path = GOLDENS / "help.txt"
    if request.config.getoption("--update-goldens"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_unknown_command_has_a_suggestion() -> None:
    outcome = hwopt("pipline")
    assert outcome.code == 2
    assert "did you mean 'pipeline'" in outcome.err


def reference() -> str:
    """docs/cli.md, from the commands themselves."""
    lines = [
        "# Command line",
        "",
        "Written by `pytest tests/cli/test_help.py --update-goldens`; stdout is data, stderr is progress.",
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done, or verdict PASS |",
        "| 1 | verdict FAIL |",
        "| 2 | usage or config error |",
        "| 3 | verdict INCONCLUSIVE (0 with `--inconclusive-ok`) |",
        "| 4 | environment or engine missing |",
        "| 5 | a stage failed; other candidates went on |",
        "| 6 | unsafe input refused |",
        "| 7 | another run holds the store |",
        "| 8 | disk or memory ran out |",
        "| 70 | internal error |",
        "| 130 | interrupted; the same command goes on from there |",
    ]

    def add(command: click.Command, path: str) -> None:
        text = (
            CliRunner()
            .invoke(cli, [*path.split()[1:], "--help"], prog_name="hwopt", terminal_width=100)
            .output
        )
        lines.extend(["", f"## {path}", "", "```text", text.rstrip(), "```"])
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None, name
                add(child, f"{path} {name}")

    add(cli, "hwopt")
    return "\n".join(lines) + "\n"


def test_command_line_reference(request: pytest.FixtureRequest) -> None:
    path = ROOT / "docs" / "cli.md"
    if request.config.getoption("--update-goldens"):
        path.write_text(reference())
    assert path.read_text() == reference()
