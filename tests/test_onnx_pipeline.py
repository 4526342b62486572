"""A profile whose model is an ONNX file, and the single commands on ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from hwopt.core.artifact import Kind
from hwopt.data.digits import DigitsOptions
from hwopt.data.digits import load as load_digits
from hwopt.testing.models import float_model, images, quantized_model
from tests.conftest import Command
from tests.quantization.nets import float_onnx
from tests.test_comparison import broken

PROFILE = """
name: given
data: {name: digits}
model: {onnx: net.onnx}
candidates:
  fp32: []
  ptq: [{quantize: {method: ptq, calibration_samples: 64}}]
  dynamic: [{quantize: {method: dynamic}}]
targets: [host-cpu]
benchmark: {budget_seconds: 0.3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    x = load_digits(DigitsOptions()).x_train
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(x.shape[1:])), 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():  # so that the classes are told apart at all
        net(torch.from_numpy(x[:8]))
    float_onnx(net.eval(), x.shape[1:], tmp_path / "net.onnx")
    (tmp_path / "p.yaml").write_text(PROFILE)
    return tmp_path


def test_the_pipeline_quantizes_and_measures_the_file(folder: Path, command: Command) -> None:
    outcome = command("pipeline", "run", "p.yaml", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    rows = {r["candidate"]: r for r in record["results"]}
    assert {r["status"] for r in rows.values()} == {"ok"}
    assert rows["fp32"]["integer_share"] == 0
    assert rows["ptq"]["integer_share"] == 1.0
    assert rows["dynamic"]["integer_share"] == 1.0
    assert rows["ptq"]["agreement"] >= 0.98
    assert rows["ptq"]["file_bytes"] < 0.6 * rows["fp32"]["file_bytes"]
    assert rows["ptq"]["details"]["benchmark"]["operator_microseconds"]
    again = command("pipeline", "plan", "p.yaml")
    assert "read the float model" in again.out
    before = again.out
    model = onnx.load(folder / "net.onnx")
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, folder / "net.onnx")
    assert command("pipeline", "plan", "p.yaml").out != before  # another file, other steps


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("fp32: []", "fp32: []\n  slim: [{prune: {ratio: 0.5}}]"), "prune cannot follow"),
        (("method: dynamic", "method: qat"), "qat needs the torch module"),
        (("model: {onnx: net.onnx}", "model: {onnx: nothing.onnx}"), "no such file"),
        (("benchmark:", "train: {epochs: 1}\nbenchmark:"), "an ONNX model is not trained"),
        (("{onnx: net.onnx}", "{onnx: net.onnx, name: cnn}"), "name"),
    ],
)
def test_profiles_that_ask_too_much(
    change: tuple[str, str], says: str, folder: Path, command: Command
) -> None:
    (folder / "p.yaml").write_text(PROFILE.replace(*change))
    outcome = command("pipeline", "validate", "p.yaml")
    assert outcome.code == 2
    assert says in outcome.err
    assert "p.yaml:" in outcome.err


def test_quantize_and_verify_from_the_command_line(folder: Path, command: Command) -> None:
    x = load_digits(DigitsOptions()).x_test[:64]
    np.savez(folder / "x.npz", input=x)
    outcome = command("quantize", "net.onnx", "--calibration", "x.npz", "-o", "q.onnx", "--explain")
    assert outcome.code == 0, outcome.err
    assert "written by Gemm, which needs its output quantized" in outcome.out
    outcome = command("verify", "q.onnx", "--against", "net.onnx", "--inputs", "x.npz", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["asked_but_float"] == []
    assert document["agreement"] >= 0.95
    assert "integer" in command("verify", "q.onnx", "--against", "net.onnx", "--inputs", "x.npz").out


def test_verify_fails_where_integers_were_asked_for_and_floats_ran(folder: Path, command: Command) -> None:
    good, _ = quantized_model(folder, "generic-cpu")
    path = broken(good, folder)
    np.savez(folder / "x.npz", input=images(8).numpy())
    arguments = ("verify", str(path), "--against", str(path), "--inputs", "x.npz")
    outcome = command(*arguments)
    assert outcome.code == 5
    assert "nothing re-quantizes" in outcome.err
    assert "  fix: " in outcome.err
    assert command(*arguments, "--allow-float").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("net.onnx",), 2, "need samples"),
        (("net.onnx", "--calibration", "none.npz"), 2, "none.npz"),
        (("net.onnx", "--calibration", "empty.npz"), 2, "the set of samples is empty"),
        (("net.onnx", "--calibration", "constant.npz"), 2, "single value"),
        (("net.onnx", "--calibration", "nan.npz"), 2, "NaN or infinity"),
        (("net.onnx", "--calibration", "shape.npz"), 2, "has the shape"),
        (("net.onnx", "--calibration", "pickle.npz"), 6, "pickled"),
        (("net.onnx", "--method", "qat"), 2, "needs the torch module"),
        (("net.onnx", "--method", "dynamic", "--target", "zcu104"), 2, "is for CPUs"),
        (("net.onnx", "--method", "dynamic", "--fix", "rate=1"), 2, "no input 'rate'"),
        (("net.onnx", "--method", "dynamic", "--fix", "rate"), 2, "--fix NAME=NUMBER"),
        (("net.onnx", "--method", "dynamic", "--keep-float", "nope"), 2, "matches no layer"),
        (("net.onnx", "--method", "dynamic", "--keep-float", "("), 2, "regular expression"),
        (
            ("net.onnx", "--method", "dynamic", "--raise-layers", "0.5", "--raise-to", "float"),
            2,
            "need samples",
        ),
        (("junk.onnx", "--method", "dynamic"), 6, "not an ONNX file"),
        (("net.onnx", "a", "b"), 2, "3 files"),
        (("net.onnx", "--method", "weight_only", "--block", "48"), 2, "block"),
        (("net.onnx", "--method", "dynamic", "--calibration", "x.npz"), 2, "would be ignored"),
        (("net.onnx", "--method", "dynamic", "--raise-to", "float"), 2, "--raise-layers"),
        (("net.onnx", "--method", "dynamic", "--set", "a.b=1"), 2, "there is none"),
        (("net.onnx", "--calibration", "text.npz"), 2, "plain numbers"),
        (("net.onnx", "--calibration", "x.npz", "--smooth", "0.5"), 2, "no layer norm"),
        (("net.onnx", "--calibration", "x.npz", "--raise-layers", "0.5"), 2, "changes nothing"),
        (("net.onnx", "--method", "dynamic", "--target", "openvino-avx2"), 2, "kernels in ONNX Runtime"),
    ],
)
def test_bad_input_leaves_no_file(
    arguments: tuple[str, ...], code: int, says: str, folder: Path, command: Command
) -> None:
    shape = load_digits(DigitsOptions()).x_test.shape[1:]
    np.savez(folder / "empty.npz", input=np.zeros((0, *shape), np.float32))
    np.savez(folder / "constant.npz", input=np.ones((8, *shape), np.float32))
    np.savez(folder / "nan.npz", input=np.full((8, *shape), np.nan, np.float32))
    np.savez(folder / "shape.npz", input=np.ones((8, 3), np.float32))
    np.savez(folder / "x.npz", input=np.random.default_rng(0).random((8, *shape), np.float32))
    np.savez(folder / "text.npz", input=np.full((8, *shape), "a"))
    np.savez(folder / "pickle.npz", input=np.asarray([object()], dtype=object))
    (folder / "junk.onnx").write_bytes(b"\x08\x01 nothing")
    outcome = command("quantize", *arguments, "-o", "out.onnx")
    assert len(outcome.err.split("error: ")) == 2, outcome.err
    assert outcome.code == code, outcome.err
    assert says in outcome.err
    assert not (folder / "out.onnx").exists()
    assert not list(folder.glob(".tmp-*"))


def test_the_source_is_not_overwritten(folder: Path, command: Command) -> None:
    before = (folder / "net.onnx").read_bytes()
    outcome = command("quantize", "net.onnx", "--method", "dynamic", "-o", "./net.onnx")
    assert outcome.code == 2
    assert "overwrite" in outcome.err
    assert (folder / "net.onnx").read_bytes() == before


def test_verify_fails_below_its_limits_and_on_nan(folder: Path, command: Command) -> None:
    x = load_digits(DigitsOptions()).x_test[:64]
    np.savez(folder / "x.npz", input=x)
    model = onnx.load(folder / "net.onnx")
    weight = next(i for i in model.graph.initializer if len(i.dims) == 2)
    values = onnx.numpy_helper.to_array(weight)
    for name, changed in (("other", -values), ("nan", values * np.nan)):
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
        onnx.save(model, folder / f"{name}.onnx")
    arguments = ("--against", "net.onnx", "--inputs", "x.npz")
    outcome = command("verify", "other.onnx", *arguments)
    assert outcome.code == 1
    assert "FAIL: output 0 is at" in outcome.err
    assert command("verify", "net.onnx", *arguments, "--min-agreement", "0.99").code == 0
    outcome = command("verify", "nan.onnx", *arguments)
    assert outcome.code == 5
    assert "NaN or infinity" in outcome.err
    outcome = command("verify", "net.onnx", *arguments, "--fix", "rate=1")
    assert outcome.code == 2
    assert "no input 'rate'" in outcome.err


def test_written_files_have_the_usual_permissions(folder: Path, command: Command) -> None:
    command("quantize", "net.onnx", "--method", "dynamic", "-o", "out.onnx")
    (folder / "plain").write_text("")
    assert (folder / "out.onnx").stat().st_mode == (folder / "plain").stat().st_mode


def test_kinds_are_told_apart_by_content(tmp_path: Path) -> None:
    from hwopt import checkpoints

    path, _ = float_model(tmp_path)
    assert checkpoints.is_onnx(path)
    assert checkpoints.kind_of(path) is Kind.ONNX
