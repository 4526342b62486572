"""One table: bad input, the place and the fix that the error must name, the exit code."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from hwopt.testing.models import float_model
from tests.conftest import Command

GOOD = """\
name: demo
data: {name: digits}
model: {name: cnn, width: 8}
train: {epochs: 1}
candidates:
  fp32: []
  int8: [{quantize: {method: ptq}}]
targets: [host-cpu]
"""


def replaced(old: str, new: str) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        assert old in GOOD
        return GOOD.replace(old, new)

    return change


def with_npz(**changes: object) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        rng = np.random.default_rng(0)
        arrays: dict[str, object] = {
            "x_train": rng.integers(0, 256, (40, 8, 8), dtype=np.uint8),
            "y_train": np.arange(40) % 4,
            "x_test": rng.integers(0, 256, (20, 8, 8), dtype=np.uint8),
            "y_test": np.arange(20) % 4,
        }
        arrays.update(changes)
        kept = {k: v for k, v in arrays.items() if v is not None}
        np.savez(folder / "d.npz", **kept)  # type: ignore[arg-type]
        return GOOD.replace("{name: digits}", "{name: npz, path: d.npz}")

    return change


NAN = np.full((40, 8, 8), 0.5, np.float32)
NAN[7, 0, 0] = np.nan


@dataclass(frozen=True)
class Case:
    name: str
    profile: Callable[[Path], str]
    says: tuple[str, ...]
    line: int | None
    code: int = 2
    verb: str = "validate"


CASES = [
    Case("unknown key", replaced("epochs: 1", "epoch: 1"), ("unknown key 'epoch'", "mean 'epochs'"), 4),
    Case("unknown top key", replaced("targets:", "target:"), ("unknown key 'target'", "'targets'"), 8),
    Case("wrong type", replaced("epochs: 1", "epochs: many"), ("epochs", "'many'", "integer"), 4),
    Case("quoted number", replaced("width: 8", 'width: "8"'), ("width", "'8'", "remove the quotes"), 3),
    Case("negative", replaced("epochs: 1", "epochs: -1"), ("epochs", "-1", "greater than"), 4),
    Case("missing key", replaced("name: demo\n", ""), ("'name' is missing",), 1),
    Case("missing file", replaced("{name: digits}", "{name: npz, path: no.npz}"), ("no.npz", "looked at"), 2),
    Case("unknown data", replaced("name: digits", "name: digit"), ("unknown data 'digit'", "'digits'"), 2),
    Case("unknown model", replaced("name: cnn", "name: cnnn"), ("unknown model 'cnnn'", "'cnn'"), 3),
    Case(
        "unknown optimizer", replaced("epochs: 1", "epochs: 1, optimizer: {name: adamww}"),
        ("unknown optimizer 'adamww'", "'adamw'"), 4,
    ),
    Case(
        "option an optimizer does not take",
        replaced("epochs: 1", "optimizer: {name: sgd, betas: [0.9, 0.99]}"),
        ("'sgd' takes no option 'betas'",), 4,
    ),
    Case(
        "unknown schedule", replaced("epochs: 1", "schedule: {name: cosin}"), ("unknown schedule 'cosin'",), 4
    ),
    Case("unknown device", replaced("host-cpu", "zcu14"), ("unknown device 'zcu14'", "'zcu104'"), 8),
    Case("unknown stage", replaced("quantize", "quantise"), ("unknown step 'quantise'", "'quantize'"), 7),
    Case(
        "int4 on a target without it", replaced("method: ptq", "method: ptq, weights: int4"),
        ("weights are int4, but", "runs int8"), 7,
    ),
    Case("no integer type", replaced("method: ptq", "weights: float16"), ("'float16' is not an integer",), 7),
    Case("ptq does not train", replaced("method: ptq", "method: ptq, epochs: 3"), ("does not train",), 7),
    Case("ratio too large", replaced("quantize: {method: ptq}", "prune: {ratio: 1.5}"), ("ratio", "1.5"), 7),
    Case(
        "prune after quantize",
        replaced("[{quantize: {method: ptq}}]", "[{quantize: {}}, {prune: {ratio: 0.5}}]"),
        ("prune cannot follow", "quantize last"), 7,
    ),
    Case(
        "requirement on no target",
        lambda folder: GOOD + "requirements:\n  - {metric: speedup, target: zcu104, min: 2}\n",
        ("no target of this profile",), 10,
    ),
    Case(
        "requirement without a bound", lambda folder: GOOD + "requirements:\n  - {metric: accuracy}\n",
        ("exactly one of min and max",), 10,
    ),
    Case(
        "a key of inspect that the plan fills in",
        lambda folder: GOOD + "inspect: {runtime: openvino}\n",
        ("inspect.runtime is that of the benchmark",), 9,
    ),
    Case("no targets", replaced("[host-cpu]", "[]"), ("at least one device",), 8),
    Case("target twice", replaced("[host-cpu]", "[host-cpu, host-cpu]"), ("stands twice",), 8),
    Case("not YAML", replaced("targets: [host-cpu]", "targets: [host-cpu"), ("not valid YAML",), 9),
    Case("key twice", replaced("train: {epochs: 1}", "train: {}\nname: again"), ("stands twice",), 5),
    Case("YAML tag", replaced("name: demo", "name: !!python/name:os.system"), ("tag",), 1),
    Case("model that does not fit", replaced("name: cnn, width: 8", "factory: 'nowhere:build'"),
         ("cannot import 'nowhere'",), 3),
    Case("npz lacks a key", with_npz(y_test=None), ("lacks y_test",), 2),
    Case("empty data set", with_npz(x_train=np.zeros((0, 8, 8), np.uint8), y_train=np.zeros(0, int)),
         ("x_train is empty",), 2),
    Case("labels out of range", with_npz(y_test=np.full(20, 9)), ("label 9", "out of range 0 … 3"), 2),
    Case("gap in the labels", with_npz(y_train=np.arange(40) % 2 * 250), ("label 250", "out of range"), 2),
    Case("negative label", with_npz(y_train=np.arange(40) % 4 - 1), ("label -1",), 2),
    Case("one class", with_npz(y_train=np.zeros(40, int)), ("1 class",), 2),
    Case("NaN images", with_npz(x_train=NAN, x_test=NAN[:20]), ("NaN", "sample 7"), 2),
    Case("lengths differ", with_npz(y_train=np.zeros(39, int)), ("40 samples", "39 labels"), 2),
    Case("pickle in npz", with_npz(x_train=np.array([{}] * 40, dtype=object)), ("pickled",), None, code=6),
    Case("batch larger than the data", lambda folder: GOOD + "benchmark: {batch: 50000}\n",
         ("the batch is 50000",), None, code=5, verb="run"),
    Case("data is a number", replaced("{name: digits}", "5"), ("data is 5", "expected a mapping"), 2),
    Case("train is null", replaced("{epochs: 1}", "null"), ("expected a mapping", "None"), 4),
    Case("candidates is a list", replaced("  fp32: []\n  int8: [{quantize: {method: ptq}}]", "  [a]"),
         ("at least one version",), 5),
    Case("a chain that is text", replaced("fp32: []", "fp32: none"), ("expected a list of steps",), 6),
    Case("targets is text", replaced("[host-cpu]", "host-cpu"), ("targets is 'host-cpu'",), 8),
    Case("factory is a number", replaced("name: cnn, width: 8", "factory: 5"), ("model.factory is 5",), 3),
    Case("factory of the standard library", replaced("{name: digits}", "{factory: 'os:getcwd'}"),
         ("standard library",), 2),
    Case("empty file", lambda folder: "", ("expected a mapping",), 1),
    Case("a list at the top", lambda folder: "- 1\n- 2\n", ("expected a mapping",), 1),
    Case("type of an option", replaced("epochs: 1", "optimizer: {betas: x}"), ("betas is 'x'",), 4),
    Case("range of an option", replaced("epochs: 1", "optimizer: {betas: [2.0, 0.9]}"), ("less than 1",), 4),
    Case("infinite number", replaced("epochs: 1", "optimizer: {lr: 1e999}"), ("finite",), 4),
    Case("misspelt choice", replaced("method: ptq", "method: qatt"), ("'qatt'", "did you mean 'qat'"), 7),
    Case("tag on a scalar", replaced("name: demo", "name: !!binary demo"), ("tag",), 1),
    Case("device file missing", replaced("host-cpu", "mine.yaml"), ("no such hardware profile",), 8),
    Case("float baseline's name on a chain",
         replaced("  fp32: []\n  int8: [", "  fp32: ["), ("names the float baseline",), 6),
    Case("uint8 and float images", with_npz(x_test=np.zeros((20, 8, 8))), ("scaled differently",), 2),
    Case("images of int64", with_npz(x_train=np.zeros((40, 8, 8), int), x_test=np.zeros((20, 8, 8), int)),
         ("scale is not known",), 2),
    Case("single number for an array", with_npz(x_train=np.uint8(3)), ("single number",), 2),
    Case("name with a blank", replaced("name: demo", "name: my demo"), ("name", "my demo"), 1),
]  # fmt: skip


def test_user_code_that_raises_is_placed_in_the_users_file(tmp_path: Path, command: Command) -> None:
    broken = {
        "raises": "def make():\n    raise KeyError('nothing')\n",
        "exits": "def make():\n    import sys\n    sys.exit(0)\n",
        "atimport": "x = 1\nraise RuntimeError('early')\n",
        "ragged": "def make():\n    keys = 'x_train', 'y_train', 'x_test', 'y_test'\n"
        "    return {k: [[1], [1, 2]] for k in keys}\n",
        "syntax": "def make(:\n",
    }
    for name, text in broken.items():
        (tmp_path / f"user_{name}.py").write_text(text)
        (tmp_path / "p.yaml").write_text(GOOD.replace("{name: digits}", f"{{factory: 'user_{name}:make'}}"))
        outcome = command("pipeline", "validate", "p.yaml")
        assert outcome.code == 2, (name, outcome.err)
        assert f"user_{name}" in outcome.err
        assert "Traceback" not in outcome.err
        if name in {"raises", "atimport"}:
            assert f"user_{name}.py:2" in outcome.err


def test_overrides_are_blamed_where_they_were_given(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    outcome = command("pipeline", "validate", "p.yaml", "--set", "train.epochs=-1")
    assert outcome.code == 2
    assert "at:  --set train.epochs" in outcome.err


def test_debug_keeps_the_exit_code(tmp_path: Path, command: Command) -> None:
    outcome = command("--debug", "pipeline", "run", "no.yaml")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


@pytest.mark.parametrize("store", ["/proc/x", "p.yaml/x"])
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_impossible_stores(store: str, verb: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    outcome = command("pipeline", verb, "p.yaml", "--store", store)
    assert outcome.code == (2 if verb == "run" else 0), outcome.err
    assert "Traceback" not in outcome.err


def test_a_checkpoint_does_not_choose_what_code_runs(tmp_path: Path, command: Command) -> None:
    recipe = {
        "format": 1, "sample_shape": [1, 8, 8], "classes": 10, "shapes": None, "scheme": None,
        "scheme_name": None,
        "model": {"name": None, "factory": "evil:build", "options": {}},
    }  # fmt: skip
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "e.safetensors", {"hwopt": json.dumps(recipe)})
    (tmp_path / "p.yaml").write_text(GOOD)
    outcome = command("export", "p.yaml", "e.safetensors", "-o", "o.onnx")
    assert outcome.code == 6
    assert "not the model of the profile" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_bench_does_not_credit_another_device(tmp_path: Path, command: Command) -> None:
    path, _ = float_model(tmp_path)
    other = "arm64-dotprod" if platform.machine() == "x86_64" else "x86-avx2"
    outcome = command("bench", path, "--target", other)
    assert outcome.code == 4
    assert f"not a {other}" in outcome.err


def test_external_weights_are_refused_wherever_they_hide(tmp_path: Path, command: Command) -> None:
    path, _ = float_model(tmp_path)
    model = onnx.load(path)
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["t"], value=tensor))
    path.write_bytes(model.SerializeToString())
    outcome = command("bench", path)
    assert outcome.code == 6
    assert "lies in another file" in outcome.err


SLOW = {"batch larger than the data"}  # it trains first


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=pytest.mark.slow if case.name in SLOW else ()) for case in CASES],
)
def test_bad_input(case: Case, tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(case.profile(tmp_path))
    outcome = command("pipeline", case.verb, "p.yaml")
    said = outcome.err + outcome.out
    assert outcome.code == case.code, said
    assert "Traceback" not in said
    for words in case.says:
        assert words in said
    if case.line is not None:
        assert f"p.yaml:{case.line}" in said
    # Progress aside: a run that fails at its end has some of it.
    assert len([line for line in said.splitlines() if not re.match(r" *\d+\.\ds  ", line)]) <= 30


def test_the_good_profile_is_good(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    outcome = command("pipeline", "validate", "p.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["train_samples"] == 1078
    assert not (tmp_path / ".hwopt").exists()  # validate leaves nothing behind


def test_every_problem_at_once(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(
        GOOD.replace("epochs: 1", "epoch: 1").replace("host-cpu", "nowhere").replace("name: cnn", "name: x")
    )
    outcome = command("pipeline", "validate", "p.yaml")
    assert outcome.code == 2
    assert outcome.err.count("error:") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pipeline", "run", "no.yaml"), 2, "no such file"),
        (("pipeline", "run", "."), 2, "is a folder"),
        (("report", "nope"), 2, "no run 'nope'"),
        (("runs", "show"), 2, "run a pipeline first"),
        (("hardware", "show", "zcu14"), 2, "did you mean 'zcu104'"),
        (("bench", "no.onnx"), 2, "no such file"),
        (("bench", "text.onnx"), 6, "not an ONNX file"),
        (("bench", "text.onnx", "--target", "zcu104"), 6, "not an ONNX file"),
        (("pipeline", "validate", "p.yaml", "--set", "epochs"), 2, "--set section.key=value"),
        (("pipeline", "validate", "p.yaml", "--set", "train.epochs=x"), 2, "epochs"),
        (("export", "p.yaml", "text.onnx", "-o", "o.onnx"), 6, "not an ONNX file"),
        (("quantize", "p.yaml", "text.onnx", "-o", "."), 2, "is a folder"),
        (("pipeline", "validate", "p.yaml", "--set", "data.path=" + "x" * 5000), 2, "unknown key 'path'"),
    ],
)
def test_bad_commands(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    (tmp_path / "text.onnx").write_text("this is no protobuf \xff\xff")
    outcome = command(*arguments)
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_store_that_cannot_be_written(tmp_path: Path, command: Command) -> None:
    (tmp_path / "p.yaml").write_text(GOOD)
    (tmp_path / "store").write_text("a file where a folder should be")
    outcome = command("pipeline", "run", "p.yaml", "--store", "store")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_closed_output_pipe_is_no_error() -> None:
    listing = f"{sys.executable} -c 'from hwopt.cli.main import main; main()' hardware list"
    command = f"{listing} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
