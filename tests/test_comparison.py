"""What was asked to run in integer, what did, and how near the outputs are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwopt
from hwopt.core.backend import NodePrecision
from hwopt.errors import ConfigError
from hwopt.integer_check import asked_for_integer, float_operators
from hwopt.testing.models import float_model, images, quantized_model


def broken(path: Path, folder: Path) -> Path:
    """The tiny net without the pair behind its first convolution, as another tool might write it."""
    model = onnx.load(path)
    graph = model.graph
    conv = next(n for n in graph.node if n.op_type == "Conv")
    relu = next(n for n in graph.node if conv.output[0] in n.input)
    quantize = next(n for n in graph.node if relu.output[0] in n.input)
    dequantize = next(n for n in graph.node if quantize.output[0] in n.input)
    for node in graph.node:
        node.input[:] = [relu.output[0] if name == dequantize.output[0] else name for name in node.input]
    graph.node.remove(quantize)
    graph.node.remove(dequantize)
    out = folder / "broken.onnx"
    onnx.save(model, out)
    return out


def test_a_sound_model_asks_for_all_and_gets_all(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "generic-cpu")
    asked = asked_for_integer(path)
    assert [a.op for a in asked] == ["Conv", "Conv", "Conv", "Gemm"]
    reference, _ = float_model(tmp_path)
    document = hwopt.verify(path, against=reference, inputs={"input": images(50).numpy()})
    assert document["asked_but_float"] == []
    assert document["agreement"] >= 0.9
    assert document["outputs"][0]["sqnr_db"] > 25
    assert len(document["worst_samples"]) == 5
    worst = [w["max_difference"] for w in document["worst_samples"]]
    assert worst == sorted(worst, reverse=True)
    assert sum(n["integer"] and n["weighted"] for n in document["nodes"]) == 4


def test_an_output_that_nothing_requantizes_is_found_and_named(tmp_path: Path) -> None:
    good, _ = quantized_model(tmp_path, "generic-cpu")
    path = broken(good, tmp_path)
    first = asked_for_integer(path)[0]
    assert "which nothing re-quantizes" in first.suspicion
    document = hwopt.verify(path, against=path, inputs={"input": images(8).numpy()})
    lost = document["asked_but_float"]
    assert lost[0]["op"] == "Conv"
    assert first.name in {a["name"] for a in lost}


def test_exactly_equal_models_are_exact(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    document = hwopt.verify(path, against=path, inputs={"input": images(8).numpy()})
    assert document["outputs"][0]["max_difference"] < 1e-5
    assert document["agreement"] == 1.0


def test_transposed_convolutions_and_float_biases_are_suspected(tmp_path: Path) -> None:
    def dq(name: str, codes: np.ndarray) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
        parts = [
            numpy_helper.from_array(codes, f"{name}_q"),
            numpy_helper.from_array(np.float32(0.1), f"{name}_s"),
        ]
        return helper.make_node("DequantizeLinear", [p.name for p in parts], [name]), parts

    weight, a = dq("w", np.ones((2, 2, 2, 2), np.int8))
    x, b = dq("x", np.ones((1, 2, 4, 4), np.int8))
    gemm, c = dq("g", np.ones((4, 4), np.int8))
    row, d = dq("r", np.ones((1, 4), np.int8))
    bias = numpy_helper.from_array(np.ones(4, np.float32), "bias")
    nodes = [
        weight, x, gemm, row,
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up"),
        helper.make_node("Gemm", ["r", "g", "bias"], ["z"], "head"),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "z")]
    graph = helper.make_graph(nodes, "g", [], outputs, [*a, *b, *c, *d, bias])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    assert [(a.name, a.suspicion) for a in asked_for_integer(path)] == [
        ("up", "ConvTranspose has no integer kernel in most CPU runtimes"),
        ("head", "its bias is in float"),
    ]
    asked = asked_for_integer(path)
    ran = [NodePrecision(name="head_quant", op="QGemm", integer=True, weighted=True, covers=("g_q",))]
    assert [a.name for a in float_operators(asked, ran)] == ["up"]


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    good = images(4).numpy()
    for arrays, says in (
        ({}, "no array for the input 'input'"),
        ({"input": good[:, :, :4]}, "has the shape"),
        ({"input": good[:0]}, "empty"),
        ({"input": good * np.nan}, "NaN"),
    ):
        with pytest.raises(ConfigError, match=says):
            hwopt.verify(path, against=path, inputs=arrays)
    with pytest.raises(ConfigError, match="no such file"):
        hwopt.verify(path, against=tmp_path / "nothing.onnx", inputs={"input": good})
