"""QONNX, hls4ml, Verilog and Yosys: what is installed runs, what is not is skipped with its name."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import hwopt
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.fpga import hls, rtl, wiring
from hwopt.fpga.emulate import Circuit
from hwopt.fpga.qonnx import DOMAIN, to_qonnx
from hwopt.layer_table import layers_of
from hwopt.testing.models import quantized_model
from tests.fpga.nets import fabric, mlp, quantized

needs_da4ml = pytest.mark.skipif(not wiring.installed(), reason="da4ml is not installed: hwopt[fpga]")


def needs_tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def vectors(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).normal(0.5, 0.5, (count, width)).astype(np.float32)


def test_qonnx_says_what_the_file_says(tmp_path: Path) -> None:
    """Bits by layer read from QONNX are those read from Q/DQ pairs; no pair is left."""
    path = quantized(tmp_path, mlp(16, 8, 4), (16,), (4, 6))
    made = to_qonnx(path)
    assert {n.op_type for n in made.graph.node} == {"Quant", "Gemm"}
    assert {n.domain for n in made.graph.node if n.op_type == "Quant"} == {DOMAIN}
    theirs = [(x.weight_bits, x.activation_bits) for x in layers_of(made) if x.is_weighted]
    ours = [(x.weight_bits, x.activation_bits) for x in layers_of(onnx.load(path)) if x.is_weighted]
    assert theirs == ours
    assert [w for w, _ in ours] == [4, 4]


@pytest.mark.skipif(importlib.util.find_spec("qonnx") is None, reason="qonnx is not installed: hwopt[fpga]")
def test_qonnx_computes_what_the_file_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes

        monkeypatch.setattr(onnx, "IR_VERSION", 10)
        path, _ = quantized_model(tmp_path, "zcu104")
        circuit = Circuit(path)
        x = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
        model = ModelWrapper(to_qonnx(path))
        model.set_tensor_shape(circuit.input, [1, 1, 8, 8])
        found = execute_onnx(model.transform(InferShapes()), {circuit.input: x})
    assert np.array_equal(next(iter(found.values())), circuit.run(x)[0])


def test_qonnx_of_a_float_model_is_refused(tmp_path: Path) -> None:
    from hwopt.testing.models import float_model

    path, _ = float_model(tmp_path)
    with pytest.raises(ConfigError, match="the model has no quantizers"):
        to_qonnx(path)


@needs_da4ml
@pytest.mark.parametrize("bits", [(8, 8), (3, 4)])
def test_the_adder_graph_computes_what_the_file_computes(tmp_path: Path, bits: tuple[int, int]) -> None:
    path = quantized(tmp_path, mlp(12, 8, 4), (12,), bits)
    x = vectors(300, 12)
    assert np.array_equal(wiring.Wires(path).predict(x), Circuit(path).run(x)[0])


@needs_da4ml
@needs_tool("iverilog")
@needs_tool("yosys")
def test_verilog_is_bit_exact_and_yosys_agrees_with_the_estimate(tmp_path: Path) -> None:
    path = quantized(tmp_path, mlp(8, 8, 4), (8,), (4, 5))
    wires = wiring.Wires(path)
    project = rtl.write(wires, tmp_path / "verilog")
    x = vectors(200, 8)
    assert np.array_equal(rtl.simulate(project, wires.codes(x)), Circuit(path).run(x)[0])
    counted = rtl.synthesize(project)
    assert counted.lut == pytest.approx(project.predicted_lut, rel=0.06)
    # Of a design this small Yosys finds some registers that are always equal.
    assert counted.ff == pytest.approx(project.predicted_ff, rel=0.15)
    assert counted.dsp == counted.bram == 0


@pytest.mark.skipif(hls.missing() is not None, reason=str(hls.missing()))
def test_hls4ml_computes_what_the_file_computes(tmp_path: Path) -> None:
    path = quantized(tmp_path, mlp(8, 8, 4), (8,), (6, 6))
    x = vectors(64, 8)
    done = hls.csim(path, x, tmp_path / "hls")
    assert np.array_equal(done.outputs, Circuit(path).run(x)[0])


def test_absent_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EngineMissingError, match="yosys is not installed"):
        rtl.call(["yosys", "-V"])
    path = quantized(tmp_path, mlp(8, 4), (8,))
    found = hwopt.fpga_prove(path, target="pynq-z2", samples=16)
    said = {p["part"]: p for p in found["not_proven"]}
    if wiring.installed():
        assert "apt install iverilog" in said["simulation"]["fix"]
        assert "apt install yosys" in said["synthesis"]["fix"]
    assert "skipped" in said["csim"]
    assert found["emulation"]["identical"] == 16


def test_without_da4ml_digits_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwopt.fpga.unrolled import unrolled

    path = quantized(tmp_path, mlp(16, 8, 4), (16,))
    monkeypatch.setattr(wiring, "installed", lambda: False)
    rough = unrolled(path, fabric())
    need = rough.needs["lut"]
    assert need.low < need.estimate < need.high
    assert "hwopt[fpga]" in rough.notes[0]
    with pytest.raises(EngineMissingError, match="da4ml is not installed"):
        wiring.Wires(path)
    monkeypatch.undo()
    if wiring.installed():
        assert need.low <= unrolled(path, fabric()).needs["lut"].estimate <= need.high


def test_convolutions_are_not_unrolled(tmp_path: Path) -> None:
    from hwopt.fpga.unrolled import unrolled

    path, _ = quantized_model(tmp_path, "zcu104")
    with pytest.raises(ConfigError, match="linear layers of one vector, and node_conv2d is Conv"):
        unrolled(path, fabric())
