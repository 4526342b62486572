"""Planted reasons for a slow integer model, each named from what ONNX Runtime really did with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwopt.config.hardware import shipped
from hwopt.latency.causes import Case, Cause, causes
from hwopt.latency.measure import Candidate, Effort, Inside, look_inside, measure_all
from hwopt.testing.models import float_model, quantized_model

IMAGE = (1, 32, 24, 24)
Node = onnx.NodeProto


def array(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def file(
    path: Path, nodes: Sequence[Node], stored: Sequence[onnx.TensorProto], shape: Sequence[int] = IMAGE
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(stored),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> Node:
    return helper.make_node(op, inputs.split(), [output], f"{op.lower()}_{output}", **attributes)


def pair(source: str, target: str, scale: str, zero: str) -> list[Node]:
    """Quantize and dequantize."""
    return [
        node("QuantizeLinear", f"{source} {scale} {zero}", f"{target}_codes"),
        node("DequantizeLinear", f"{target}_codes {scale} {zero}", target),
    ]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def convolution(weights: Any, activations: Any, zero: int, *, depthwise: bool) -> Callable[[Path], Path]:
    """One convolution in the middle of Q/DQ pairs, of the given types."""
    channels = IMAGE[1]

    def make(folder: Path) -> Path:
        group = channels if depthwise else 1
        codes = np.clip(random(channels, channels // group, 3, 3) * 40, -127, 127)
        shift = 128 if weights is np.uint8 else 0
        nodes = [
            *pair("x", "xd", "s", "z"),
            node("DequantizeLinear", "w s wz", "wd"),
            node("Conv", "xd wd", "c", pads=[1] * 4, group=group),
            *pair("c", "y", "s", "z"),
        ]
        stored = [
            array("s", 0.05),
            array("z", zero, activations),
            array("w", codes + shift, weights),
            array("wz", shift, weights),
        ]
        return file(folder / "q.onnx", nodes, stored)

    return make


def dynamic(folder: Path) -> Path:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], "dql"),
        helper.make_node("ConvInteger", ["xq", "w", "xz"], ["i"], "conv", pads=[1] * 4),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f xs", "y"),
    ]
    return file(folder / "q.onnx", nodes, [array("w", random(32, 32, 3, 3) * 40, np.int8)])


def unmerged(folder: Path) -> Path:
    """Pairs around operators that have no integer kernel."""
    nodes, last = [], "x"
    for index in range(4):
        target = "y" if index == 3 else f"e{index}"
        nodes += [
            *pair(last, f"d{index}", "s", "z"),
            node("Abs" if index % 2 else "Neg", f"d{index}", target),
        ]
        last = target
    return file(folder / "q.onnx", nodes, [array("s", 0.05), array("z", 0, np.int8)])


def fallen_back(folder: Path) -> Path:
    """A quantized convolution whose output leaves the model in float."""
    nodes = [
        *pair("x", "xd", "s", "z"),
        node("DequantizeLinear", "w s wz", "wd"),
        node("Conv", "xd wd", "y", pads=[1] * 4),
    ]
    stored = [
        array("s", 0.05),
        array("z", 0, np.uint8),
        array("w", np.clip(random(32, 32, 3, 3) * 40, -127, 127), np.int8),
        array("wz", 0, np.int8),
    ]
    return file(folder / "q.onnx", nodes, stored)


def tiny(folder: Path) -> Path:
    nodes = [
        *pair("x", "xd", "s", "z"),
        node("DequantizeLinear", "w s wz", "wd"),
        node("MatMul", "xd wd", "m"),
        *pair("m", "y", "s", "z"),
    ]
    stored = [
        array("s", 0.05),
        array("z", 0, np.uint8),
        array("w", random(4, 4) * 10, np.int8),
        array("wz", 0, np.int8),
    ]
    return file(folder / "q.onnx", nodes, stored, shape=(1, 4))


def float_of(folder: Path) -> Path:
    """The same convolution in float, as the thing to be compared with."""
    nodes = [node("Conv", "x w", "y", pads=[1] * 4)]
    return file(folder / "f.onnx", nodes, [array("w", random(32, 32, 3, 3))])


def tiny_float(folder: Path) -> Path:
    return file(folder / "f.onnx", [node("MatMul", "x w", "y")], [array("w", random(4, 4))], shape=(1, 4))


def candidate(path: Path) -> Candidate:
    value = onnx.load(path).graph.input[0]
    shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Candidate(model=path, runtime="onnxruntime", hardware=shipped("generic-cpu"), feed={value.name: x})


def named(model: Path, baseline: Path) -> list[Cause]:
    sides = [candidate(baseline), candidate(model)]
    rounds = measure_all(sides, Effort(budget_seconds=0.3, samples=0, processes=1, sessions=1)).rounds
    inside: list[Inside] = [look_inside(side) for side in sides]
    case = Case(
        graph=onnx.load(model).graph,
        path=model,
        model=inside[1],
        baseline=inside[0],
        baseline_seconds=rounds.seconds(0),
    )
    return causes(case)


@pytest.mark.parametrize(
    ("make", "baseline", "name"),
    [
        (unmerged, float_of, "conversions"),
        (convolution(np.int8, np.int8, 3, depthwise=True), float_of, "asymmetric_signed_depthwise"),
        (dynamic, float_of, "dynamic_convolution"),
        (convolution(np.uint8, np.uint8, 0, depthwise=False), float_of, "unsigned_weights"),
        (fallen_back, float_of, "fallback"),
        (tiny, tiny_float, "call_overhead"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_planted_cause(
    make: Callable[[Path], Path], baseline: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    found = named(make(tmp_path), baseline(tmp_path))
    assert found[0].name == name
    assert found[0].fix
    assert found[0].operators or name == "call_overhead"


def test_a_sound_model_is_accused_of_nothing_that_is_planted(tmp_path: Path) -> None:
    """Whatever its speed here: none of the causes that only a bad file or runtime has."""
    path, _ = quantized_model(tmp_path, "generic-cpu")
    found = {cause.name for cause in named(path, float_model(tmp_path)[0])}
    assert not found & {"asymmetric_signed_depthwise", "dynamic_convolution", "unsigned_weights", "fallback"}


def test_where_no_rule_speaks_the_slower_operators_do(tmp_path: Path) -> None:
    small, large = float_of(tmp_path), tmp_path / "large.onnx"
    file(large, [node("Conv", "x w", "y", pads=[2] * 4)], [array("w", random(32, 32, 5, 5))])
    (cause,) = named(large, small)
    assert cause.name == "slower_operators"
    assert cause.operators[0] == "Conv"
