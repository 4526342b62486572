"""What every verb keeps to, and the verbs around a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from hwopt.cli.main import cli
from hwopt.config.schema import schema
from hwopt.store.store import Store
from hwopt.testing.models import float_model
from tests.conftest import ROOT, Command, DigitsRun, hwopt

# They print a document of another kind: JSON itself, a script, or what --format says; or nothing, until interrupted.
NO_JSON = {"schema", "completion", "report", "search-server"}


def verbs(group: click.Group, at: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from verbs(command, f"{at}{name} ")
        else:
            yield f"{at}{name}", command


ALL = dict(verbs(cli))


@pytest.mark.parametrize("name", sorted(ALL.keys() - NO_JSON))
def test_every_verb_speaks_json(name: str) -> None:
    assert any("--json" in p.opts for p in ALL[name].params), name


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_verb_has_help(name: str) -> None:
    assert ALL[name].help


PROFILES = [*(ROOT / "pipelines").glob("*.yaml"), *(ROOT / "benchmarks" / "profiles").glob("*.yaml")]


@pytest.mark.parametrize("path", sorted(PROFILES), ids=lambda p: p.name)
def test_profiles_keep_to_the_schema(path: Path) -> None:
    value = yaml.safe_load(path.read_text())
    jsonschema.Draft202012Validator(schema("profile")).validate(value)


def test_schemas_are_schemas_and_find_mistakes() -> None:
    for kind in ("profile", "policy", "hardware"):
        jsonschema.Draft202012Validator.check_schema(schema(kind))
    value = yaml.safe_load((ROOT / "pipelines" / "digits.yaml").read_text())
    checker = jsonschema.Draft202012Validator(schema("profile"))
    for change in (
        {"tragets": []},
        {"seed": -1},
        {"candidates": {"a": [{"quantise": {}}]}},
        {"train": {"epoch": 1}},
        {"search": "width_dept"},
        {"search": {"space": "width"}},
    ):
        assert not checker.is_valid({**value, **change}), change
    for path in sorted((ROOT / "hardware_profiles").glob("*.yaml"))[:5]:
        jsonschema.Draft202012Validator(schema("hardware")).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_init_writes_what_runs(ci: str, tmp_path: Path, command: Command) -> None:
    outcome = command("init", "my project", "--ci", ci)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "my project"
    assert command("pipeline", "validate", folder / "profile.yaml").code == 0
    assert command("pipeline", "plan", folder / "profile.yaml", "--json").json["steps"]
    for path in folder.rglob("*.yml"):
        assert yaml.safe_load(path.read_text())
    again = command("init", "my project", "--ci", ci)
    assert again.code == 2
    assert "--force" in again.err
    assert command("init", "my project", "--ci", ci, "--force").code == 0


def test_init_with_a_model_of_ones_own(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path)
    (tmp_path / "tiny.onnx").unlink(missing_ok=True)
    model = next(tmp_path.glob("*.onnx"))
    assert command("init", "a", "--model", model).code == 2  # the data is not named
    (tmp_path / "d.py").write_text("def data(): ...\n")
    outcome = command("init", "2024", "--model", model, "--data", "d:data", "--json")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "2024" / "profile.yaml").read_text()
    assert 'name: "2024"' in text
    assert "onnx:" in text
    assert command("init", "b", "--model", "nosuch").code == 2
    assert not (tmp_path / "b" / "gate.yaml").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, command: Command) -> None:
    outcome = command("completion", shell)
    assert outcome.code == 0
    assert "_HWOPT_COMPLETE" in outcome.out


def test_completion_of_a_verb() -> None:
    outcome = hwopt(env={"_HWOPT_COMPLETE": "bash_complete", "COMP_WORDS": "hwopt pipe", "COMP_CWORD": "1"})
    assert "pipeline" in outcome.out


def test_bundle(digits_run: DigitsRun, tmp_path: Path, command: Command) -> None:
    store = ("--store", digits_run.store)
    assert command("bundle", "-o", "b", *store).code == 2  # two targets have a version
    outcome = command("bundle", "-o", "b", "--target", "host-cpu", *store)
    assert outcome.code == 0, outcome.err
    assert command("bundle", "--check", "b").code == 0
    assert json.loads((tmp_path / "b" / "contract.json").read_text())["inputs"][0]["shape"][1:] == [1, 8, 8]
    for name in ("one.zip", "two.zip"):
        assert command("bundle", "-o", name, "--target", "zcu104", *store, "--json").code == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert command("bundle", "--check", "one.zip").code == 0
    assert command("bundle", "-o", "b", "--target", "host-cpu", *store).code == 2  # it exists


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.onnx", lambda text: text + b"\0"),
        ("contract.json", lambda text: text.replace(b"float32", b"float64")),
        ("report.html", lambda text: text.replace(b"UNDECIDED", b"READY")),
        ("manifest.json", lambda text: text.replace(b'"slim"', b'"fp32"')),
        ("manifest.json", lambda text: b"{}"),
        ("manifest.json", lambda text: b"[" * 100_000),
        ("added.txt", lambda text: b"x"),
        ("model.onnx", None),
    ],
)
def test_a_changed_bundle_is_refused(
    digits_run: DigitsRun, tmp_path: Path, command: Command, name: str, change: object
) -> None:
    assert command("bundle", "-o", "b", "--target", "host-cpu", "--store", digits_run.store).code == 0
    path = tmp_path / "b" / name
    if callable(change):
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    else:
        path.unlink()
    outcome = command("bundle", "--check", "b")
    assert outcome.code in {2, 6}, outcome.out + outcome.err
    assert "Traceback" not in outcome.err


def test_a_zip_with_more_in_it_is_refused(digits_run: DigitsRun, tmp_path: Path, command: Command) -> None:
    assert command("bundle", "-o", "b.zip", "--target", "host-cpu", "--store", digits_run.store).code == 0
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr("../evil", "x")
    assert command("bundle", "--check", "b.zip").code == 6
    assert not (tmp_path.parent / "evil").exists()


def test_compare_and_diff(digits_run: DigitsRun, command: Command) -> None:
    store, run = ("--store", digits_run.store), digits_run.record["run"]
    outcome = command("compare", f"{run}:fp32", f"{run}:slim", "--target", "host-cpu", *store, "--json", "-q")
    assert outcome.code == 0, outcome.err
    (found,) = outcome.json["targets"]
    assert found["ratios"]["file_bytes"]["high"] < 0.4
    assert found["ratios"]["latency_ms"]["high"] < 0.9
    assert found["ratios"]["accuracy_drop"]["low"] < 0.05
    assert command("compare", run, f"{run}:slmi", *store).code == 2
    assert command("compare", "a.onnx", "b.onnx", *store).code == 2
    assert command("runs", "diff", run, run, *store, "--json").json["results"] == []


def test_gate_against_a_baseline(digits_run: DigitsRun, tmp_path: Path, command: Command) -> None:
    (tmp_path / "g.yaml").write_text(
        "rules:\n- {metric: latency_ms, max: 0.9, of: baseline, target: host-cpu}\n"
        "- {metric: accuracy_drop, max: 0.05, of: baseline, target: host-cpu}\n"
    )
    store, run = ("--store", digits_run.store), digits_run.record["run"]
    outcome = command("gate", run, "--policy", "g.yaml", "--baseline", f"{run}:fp32", *store, "--json", "-q")
    assert outcome.code == 0, outcome.out + outcome.err
    assert all(rule["low"] < rule["high"] for rule in outcome.json["rules"])


def test_verify_gc_and_unlock_of_a_good_store(digits_run: DigitsRun, command: Command) -> None:
    store = ("--store", digits_run.store)
    assert command("runs", "verify", *store, "--json").json["whole"] is True
    assert command("runs", "gc", *store, "--json").json == {
        "schema_version": 1, "removed": False, "runs": [], "steps": 0, "files": 0, "bytes": 0,
    }  # fmt: skip
    assert "nobody" in command("runs", "unlock", *store).out
    for verb in ("verify", "gc"):
        assert command("runs", verb, "--store", "nowhere").code == 2


def test_a_run_that_was_cut_off_can_be_looked_at(tmp_path: Path, command: Command) -> None:
    store = Store(tmp_path / ".hwopt")
    run, log = store.begin_run(datetime(2026, 1, 1, tzinfo=UTC))
    log("run begins", run=run)
    log("step begins", label="train the float model", key="k")
    assert "unfinished" in command("runs", "list").out
    shown = command("runs", "show", run)
    assert shown.code == 0, shown.err
    assert "step begins: train the float model" in shown.out
    assert command("runs", "show", run, "--json").json["events"][0]["event"] == "run begins"
    assert command("runs", "show", "latest").code == 2


def test_findings_as_sarif(tmp_path: Path, command: Command) -> None:
    path, _ = float_model(tmp_path)
    assert command("check", path, "--sarif", "s.json").code == 0
    log = json.loads((tmp_path / "s.json").read_text())
    assert log["version"] == "2.1.0"
    (tmp_path / "bad model#1.onnx").write_bytes(b"no model")
    assert command("check", "bad model#1.onnx", "--sarif", "t.json").code == 6
    ((result,),) = (r["results"] for r in json.loads((tmp_path / "t.json").read_text())["runs"])
    assert result["ruleId"] == "unsafe-input"
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert place == "bad%20model%231.onnx"
    assert result["partialFingerprints"]["primaryLocationLineHash"]


# --- row 24 of the fault table: odd places -------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": ""},
        {"HOME": "/nonexistent"},
        {"LANG": "C", "LC_ALL": "C"},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"COLUMNS": "20"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_odd_surroundings(environment: dict[str, str], digits_run: DigitsRun) -> None:
    outcome = hwopt("runs", "show", "latest", "--store", digits_run.store, env=environment)
    assert outcome.code == 0, outcome.err
    assert "slim" in outcome.out
    assert "\x1b[" not in outcome.out + outcome.err


def test_a_reader_that_leaves(digits_run: DigitsRun) -> None:
    code = "from hwopt.cli.main import main; main()"
    command = f"{sys.executable} -c '{code}' runs show latest --json --store {digits_run.store} | head -c 10"
    said = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("name", ["größe 模型 '\"$(x);/" + "y" * 100])
def test_odd_paths(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    path, _ = float_model(folder)
    outcome = hwopt("check", path.name, cwd=folder)
    assert outcome.code == 0, outcome.err
    profile = "name: p\ndata: {name: digits}\nmodel: {onnx: 'm o.onnx'}\ncandidates: {f: []}\ntargets: [generic-cpu]\n"
    os.replace(path, folder / "m o.onnx")  # noqa: PTH105 - a rename
    (folder / "p.yaml").write_text(profile)
    outcome = hwopt("pipeline", "run", "p.yaml", "--until", "read", "--json", cwd=folder)
    assert outcome.code == 0, outcome.err
    assert outcome.json["steps"][0]["status"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux namespaces")
def test_a_small_dev_shm_and_a_read_only_folder(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount in a namespace (unshare -rm)")
    path, _ = float_model(tmp_path)
    code = "from hwopt.cli.main import main; main()"
    script = (
        f"mount -t tmpfs -o size=64m none /dev/shm; mkdir {tmp_path}/ro; mount --bind {tmp_path}/ro {tmp_path}/ro; "
        f"mount -o remount,bind,ro {tmp_path}/ro; cd {tmp_path}/ro; "
        f"{sys.executable} -c '{code}' bench {path} --time-budget 0.2 --processes 1"
    )
    said = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
