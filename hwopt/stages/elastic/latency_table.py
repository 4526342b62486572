"""What a network takes on a device, as the sum of what its layers take: each distinct layer is timed once.

A layer by itself takes longer than among others, which hand their results on in the layout that kernels like. So the
sum is corrected by some networks that are timed whole: a factor for every layer, near to one another unless the
measurements say otherwise.

Reference:
    Cai et al., ICLR 2019 (ProxylessNAS), appendix B: a latency table by layer and shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference
from scipy.stats import kendalltau

from hwopt.core.backend import Runtime
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.dataset import Array
from hwopt.errors import StageFailedError
from hwopt.latency.bench import Bench
from hwopt.measuring.block import Call
from hwopt.measuring.rounds import quick_ratios

_FREE: Final = frozenset(
    {"Constant", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Shape"}
)
_FUSED: Final = frozenset({"Relu", "Clip", "LeakyRelu"})  # into the convolution that gives their input
LOOKS: Final = 3  # at every time; the median counts
_PULL: Final = 0.01  # towards one factor for all layers
_TOGETHER: Final = 16  # sessions that are timed beside each other


@dataclass(slots=True)
class LatencyTable:
    """Times of layers in units of one small reference call; filled as layers come along."""

    bench: Bench
    times: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)  # of layers, by name; of others, their mean
    call: float = 1.0  # what a network takes besides its layers

    def price(self, models: Sequence[onnx.ModelProto]) -> list[float]:
        """The sum of each model's layers; layers that are not in the table are timed first."""
        mean = sum(self.factors.values()) / len(self.factors) if self.factors else 1.0
        rows = self._rows(models)
        return [self.call + sum(self.factors.get(name, mean) * t for name, t in row) for row in rows]

    def _rows(self, models: Sequence[onnx.ModelProto]) -> list[list[tuple[str, float]]]:
        """Name and time of every layer, without that of a call; layers without weights share names."""
        keyed = [layers(model, self.bench.sample.shape[0]) for model in models]
        missing = {key: model for row in keyed for _, key, model in row if key not in self.times}
        self._time(missing)
        return [[(name, max(0.0, self.times[key] - 1.0)) for name, key, _ in row] for row in keyed]

    def correct(self, models: Sequence[onnx.ModelProto], measured: Sequence[float]) -> None:
        """Fit the factors to networks that were timed whole, in any unit: least squares, held near their mean."""
        rows = self._rows(models)
        names = sorted({name for row in rows for name, _ in row})
        a = np.asarray([[1.0, *(sum(t for n, t in row if n == name) for name in names)] for row in rows])
        y = np.asarray(measured)
        scale = float(y @ a.sum(1) / (a.sum(1) @ a.sum(1)))  # one factor for all
        prior = np.full(a.shape[1], scale)
        pull = _PULL * float((a**2).mean()) * len(rows)
        gram = a.T @ a + pull * np.eye(a.shape[1])
        found = np.maximum(0.0, np.linalg.solve(gram, a.T @ y + pull * prior))
        self.call = float(found[0])
        self.factors = dict(zip(names, (float(f) for f in found[1:]), strict=True))

    def _time(self, models: dict[str, onnx.ModelProto]) -> None:
        """Each against a call that does nothing: what a call costs by itself is counted once a network."""
        names = list(models)
        for start in range(0, len(names), _TOGETHER):
            some = names[start : start + _TOGETHER]
            bench = _Own(self.bench)
            looks = [bench.ratios([models[k] for k in some]) for _ in range(LOOKS)]
            for key, *ratios in zip(some, *looks, strict=True):
                self.times[key] = median(ratios)


class _Own:
    """Times models that take inputs of their own shapes against a call that only copies a number."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def ratios(self, models: Sequence[onnx.ModelProto]) -> list[float]:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            calls: list[Call] = []
            for index, model in enumerate([_nothing(), *models]):
                path = Path(folder) / f"{index}.onnx"
                path.write_bytes(model.SerializeToString())
                runtime = self._bench.load(path)
                stack.callback(runtime.close)
                rng = np.random.default_rng(0)
                for value in model.graph.input:
                    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
                    if value.type.tensor_type.elem_type != TensorProto.FLOAT or 0 in shape:
                        raise StageFailedError(
                            f"a layer that reads {value.name} of shape {shape} cannot be timed by itself",
                            fix="give the goal in macs",
                        )
                feeds = {
                    i.name: rng.random([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32)
                    for i in model.graph.input
                }
                calls.append(_call(runtime, feeds))
            return quick_ratios(calls[0], calls[1:], seed=self._bench.seed)


def _call(runtime: Runtime, feeds: dict[str, Array]) -> Call:
    return lambda: runtime.run(feeds)


def _nothing() -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "nothing", [value], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(model: onnx.ModelProto, batch: int) -> list[tuple[str, str, onnx.ModelProto]]:
    """Each layer of a float model: its name, a key that is the same for the same work, and a model of it alone."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if not value.type.tensor_type.shape.dim[0].HasField("dim_value"):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    graph = shape_inference.infer_shapes(fixed).graph
    stored = {i.name: i for i in graph.initializer}
    values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[tuple[str, str, onnx.ModelProto]] = []
    fused: set[str] = set()
    for node in graph.node:
        if node.op_type in _FREE or node.output[0] in fused:
            continue
        nodes = [node]
        after = readers.get(node.output[0], [])
        if node.op_type in {"Conv", "Gemm", "Add"} and len(after) == 1 and after[0].op_type in _FUSED:
            nodes.append(after[0])
            fused.add(after[0].output[0])
        inputs = [
            n
            for one in nodes
            for n in one.input
            if n in values and n not in stored and n not in nodes[0].output
        ]
        weights = [stored[n] for one in nodes for n in one.input if n in stored]
        out = nodes[-1].output[0]
        if not inputs or out not in values:
            continue
        part = helper.make_graph(
            nodes, "layer", [values[n] for n in dict.fromkeys(inputs)], [values[out]], weights
        )
        alone = helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)
        key = _key(alone)
        found.append((weights[0].name if weights else key, key, alone))
    return found


def _key(model: onnx.ModelProto) -> str:
    """Operators with their attributes and the shapes of all they read: what its time depends on."""
    graph = model.graph
    parts: list[JSON] = [
        [n.op_type, *sorted(a.SerializeToString().hex() for a in n.attribute)] for n in graph.node
    ]
    shapes: list[JSON] = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input]
    weights: list[JSON] = [list(i.dims) for i in graph.initializer]
    return canonical_json([parts, shapes, weights])


def agreement(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Kendall's tau-b of all but the first, and their mean error as shares of the first, which is the whole network.

    The whole network is nearly always the slowest, and would agree for free.
    """
    tau = float(kendalltau(predicted[1:], measured[1:]).statistic)
    shares = [p / predicted[0] for p in predicted[1:]]
    real = [m / measured[0] for m in measured[1:]]
    error = float(np.mean([abs(p / r - 1) for p, r in zip(shares, real, strict=True)])) if real else 0.0
    return tau, error
