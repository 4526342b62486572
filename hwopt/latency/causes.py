"""Why a quantized model is no faster than its float model: causes that can be named, with what they cost.

Read from three places: the file (which types and zero points it asks for), the graph that the runtime executes
(what became of it), and the runtime's own clock (what it costs). A cause is named only where the file or the
executed graph shows it; the clock says how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import numpy_helper

from hwopt.core.canonical import JSON
from hwopt.integer_check import asked_for_integer, float_operators
from hwopt.latency.families import by_family
from hwopt.latency.measure import Inside

_CONVERSIONS: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "Quantize", "Dequantize"}
)
_CONVERSION_SHARE: Final = 0.1  # of the time in operators, from where on conversions are worth naming
_PROFILER_SECONDS: Final = 2e-6  # that it adds to an operator, about: a product of 4×4 takes so long under it
_OVERHEAD_SHARE: Final = 0.5  # of a call that is spent outside operators
_SHOWN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason, the operators that show it, and what to do."""

    name: str
    text: str
    operators: tuple[str, ...]
    fix: str

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "cause": self.name,
            "text": self.text,
            "operators": list[JSON](self.operators),
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of one model that is no faster than ``baseline``."""

    graph: onnx.GraphProto
    path: Path
    model: Inside
    baseline: Inside
    baseline_seconds: float


def causes(case: Case) -> list[Cause]:
    """All that are found, the most telling first; the slower operators where none is."""
    found = [cause for rule in _RULES if (cause := rule(case)) is not None]
    return found or [_slower_operators(case)]


def _fallback(case: Case) -> Cause | None:
    floats = float_operators(asked_for_integer(case.path), case.model.nodes)
    if not floats:
        return None
    first = floats[0]
    return Cause(
        name="fallback",
        text=f"{len(floats)} operators that the file quantizes run in float: {first.suspicion}",
        operators=tuple(one.name for one in floats),
        fix="quantize for this runtime's device profile, or leave these layers in float: rules, keep_float",
    )


def _dynamic_convolution(case: Case) -> Cause | None:
    names = _named(case.graph, lambda node: node.op_type == "ConvInteger")
    if not names:
        return None
    return Cause(
        name="dynamic_convolution",
        text=f"{len(names)} convolutions quantize their input anew in every call",
        operators=names,
        fix="quantize convolutions statically: method ptq with calibration samples",
    )


def _unsigned_weights(case: Case) -> Cause | None:
    codes = _Codes(case.graph)
    names = _named(
        case.graph, lambda node: codes.weight(node) == "uint8" and codes.activation(node) == "uint8"
    )
    if not names:
        return None
    return Cause(
        name="unsigned_weights",
        text=f"{len(names)} layers have uint8 weights and uint8 activations, which no fast x86 kernel multiplies",
        operators=names,
        fix="quantize weights to int8, symmetric",
    )


def _signed_depthwise(case: Case) -> Cause | None:
    codes = _Codes(case.graph)

    def is_one(node: onnx.NodeProto) -> bool:
        return (
            codes.depthwise(node)
            and codes.weight(node) == "int8"
            and codes.activation(node) == "int8"
            and codes.shifted(node)
        )

    names = _named(case.graph, is_one)
    if not names:
        return None
    return Cause(
        name="asymmetric_signed_depthwise",
        text=f"{len(names)} depthwise convolutions have int8 activations with a zero point other than 0, and "
        "leave the runtime's fast depthwise kernel",
        operators=names,
        fix="quantize activations to uint8, or symmetrically about 0",
    )


def _conversions(case: Case) -> Cause | None:
    """Those at the model's own inputs and outputs are needed; they count in time, and are not the cause alone."""
    times = [t for t in case.model.operators if t.op in _CONVERSIONS]
    needed = len(case.graph.input) + len(case.graph.output)
    spent, total = (sum(t.seconds for t in some) * 1e6 for some in (times, case.model.operators))
    if total <= 0 or spent < _CONVERSION_SHARE * total or len(times) <= needed:
        return None
    names = tuple(t.name for t in times)
    return Cause(
        name="conversions",
        text=f"{len(names)} conversions between float and integer are left in the graph that runs, and take "
        f"{spent:.1f} of {total:.1f} µs",
        operators=names,
        fix="quantize neighbouring operators too, or leave this part in float",
    )


def _overhead(case: Case) -> Cause | None:
    # The least of each, without what the profiler adds: it counts where operators take no longer than that.
    least = [t.seconds if t.least is None else t.least for t in case.baseline.operators]
    inside = sum(max(seconds - _PROFILER_SECONDS, 0.0) for seconds in least)
    outside = case.baseline_seconds - inside
    if outside < _OVERHEAD_SHARE * case.baseline_seconds:
        return None
    return Cause(
        name="call_overhead",
        text=f"the float model spends {outside * 1e6:.1f} of {case.baseline_seconds * 1e6:.1f} µs of a call outside "
        "its operators, and quantization cannot shorten that",
        operators=(),
        fix="run larger batches, or ship the float model",
    )


def _slower_operators(case: Case) -> Cause:
    mine, other = by_family(case.model.operators), by_family(case.baseline.operators)
    more = {name: float(str(time)) - float(str(other.get(name, 0.0))) for name, time in mine.items()}
    worst = [name for name in sorted(more, key=lambda n: -more[n]) if more[name] > 0][:_SHOWN]
    parts = [f"{name} {mine[name]:.1f} µs against {float(str(other.get(name, 0.0))):.1f}" for name in worst]
    return Cause(
        name="slower_operators",
        text="it loses time in " + ", ".join(parts) if parts else "no operator of it is slower by itself",
        operators=tuple(worst),
        fix="ship the float model, or let method where_faster choose the layers",
    )


_RULES: Final[Sequence[Callable[[Case], Cause | None]]] = (
    _fallback,
    _dynamic_convolution,
    _unsigned_weights,
    _signed_depthwise,
    _overhead,
    _conversions,
)


def _named(graph: onnx.GraphProto, wanted: Callable[[onnx.NodeProto], bool]) -> tuple[str, ...]:
    return tuple(node.name or node.output[0] for node in graph.node if wanted(node))


class _Codes:
    """Types and zero points of what enters a weighted operator of a QDQ or QOperator file."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {output: node for node in graph.node for output in node.output}
        self._stored: Mapping[str, onnx.TensorProto] = {i.name: i for i in graph.initializer}

    def _zero(self, node: onnx.NodeProto, slot: int) -> onnx.TensorProto | None:
        """The zero point of an input: that of its DequantizeLinear, or of a QLinear operator."""
        qlinear = {"QLinearConv": {0: 2, 1: 5}, "QLinearMatMul": {0: 2, 1: 5}}.get(node.op_type)
        if qlinear is not None:
            return self._stored.get(node.input[qlinear[slot]])
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            return None
        maker = self._dequantize(node, slot)
        return self._stored.get(maker.input[2]) if maker is not None and len(maker.input) > 2 else None

    def _dequantize(self, node: onnx.NodeProto, slot: int) -> onnx.NodeProto | None:
        maker = self._makers.get(node.input[slot])
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def _type(self, node: onnx.NodeProto, slot: int) -> str | None:
        zero = self._zero(node, slot)
        if zero is None and node.op_type in {"Conv", "Gemm", "MatMul"}:  # the type is that of the codes
            maker = self._dequantize(node, slot)
            zero = self._stored.get(maker.input[0]) if maker is not None else None
        return None if zero is None else onnx.TensorProto.DataType.Name(zero.data_type).lower()

    def weight(self, node: onnx.NodeProto) -> str | None:
        return self._type(node, 1)

    def activation(self, node: onnx.NodeProto) -> str | None:
        return self._type(node, 0)

    def shifted(self, node: onnx.NodeProto) -> bool:
        zero = self._zero(node, 0)
        return zero is not None and bool(numpy_helper.to_array(zero).any())

    def depthwise(self, node: onnx.NodeProto) -> bool:
        if "Conv" not in node.op_type:
            return False
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if groups == 1:
            return False
        slot = 3 if node.op_type == "QLinearConv" else 1
        maker = self._makers.get(node.input[slot])
        stored = self._stored.get(maker.input[0] if maker is not None else node.input[slot])
        return stored is not None and len(stored.dims) > 1 and stored.dims[1] == 1
