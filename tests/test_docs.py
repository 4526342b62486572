"""Commands and profiles in README and docs are real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hwopt.cli.main import cli
from hwopt.config.policy import read_policy
from hwopt.config.profile import load
from tests.conftest import ROOT, hwopt

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    return [(p.name, text) for p in PAGES for kind, text in BLOCK.findall(p.read_text()) if kind == language]


COMMANDS = [
    (page, line.partition("#")[0].strip())
    for page, text in blocks("sh")
    for line in text.splitlines()
    if line.startswith("hwopt ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: str(value)[:40])
def test_commands_parse(page: str, line: str) -> None:
    """Every option is known to its command: with --help added, Click parses and stops."""
    result = CliRunner().invoke(cli, [*shlex.split(line)[1:], "--help"])
    assert result.exit_code == 0, f"{page}: {line}\n{result.output}"
    options = [word for word in shlex.split(line) if word.startswith("--")]
    for option in options:
        assert option in result.output, f"{page}: {line} uses {option}"


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize(("page", "text"), blocks("yaml"), ids=lambda value: str(value)[:20])
def test_profiles_and_policies_load(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    if text.startswith("# gate.yaml"):
        path.write_text(text)
        assert read_policy(path).rules
        return
    (tmp_path / "mnist").mkdir()
    path.write_text(text.replace("/data/mnist", str(tmp_path / "mnist")))
    assert load(path).candidates


@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda value: str(value)[:20])
def test_python_compiles(page: str, text: str) -> None:
    compile(text, page, "exec")


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"sh", "yaml", "python", "text"}  # text is output, and no input


def test_policies_load() -> None:
    for path in (ROOT / "pipelines" / "policies").glob("*.yaml"):
        assert read_policy(path).rules


@pytest.mark.slow
def test_the_tutorial_works_to_the_letter(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    (code,) = (block for kind, block in BLOCK.findall(text) if kind == "python")
    (tmp_path / "make_model.py").write_text(code)
    for kind, block in BLOCK.findall(text):
        for line in block.splitlines() if kind == "sh" else ():
            words = shlex.split(line.partition("#")[0])
            if words[0] == "hwopt":
                outcome = hwopt(*words[1:], cwd=tmp_path)
                assert outcome.code in ({0, 1} if words[1] == "gate" else {0}), (
                    f"{line}\n{outcome.out}{outcome.err}"
                )
            else:
                subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)


def test_readme_shows_the_shipped_profile() -> None:
    ((_, text), *_) = blocks("yaml")
    shipped = (ROOT / "pipelines" / "digits.yaml").read_text().partition("\n")[2]
    assert text == shipped


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
