"""Which operators a file asks to run in integer, and why a runtime may refuse; read from the file alone.

The runtime's own graph says what it did (``Runtime.executed``); ``float_operators`` puts the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from hwopt.core.backend import NodePrecision
from hwopt.core.canonical import JSON

_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
_NUMBERED: Final = re.compile(r"(_token_\d+)+$")
_JOINED: Final = re.compile(r" \+ |,\s*")
_INTEGER_BY_NAME: Final = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM"})
_BY_NAME: Final = "this runtime has no kernel for activations that are quantized as the model runs"
_MERGED: Final = frozenset({"Relu", "Clip"})
# Rewritten by every runtime before it looks for integer operators.
_HANDS_OUT_FLOATS: Final = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A convolution or product whose inputs are all quantized."""

    name: str
    op: str
    stored: tuple[str, ...]  # initializers that hold its codes
    suspicion: str  # what in the file could keep a runtime from integers

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"name": self.name, "op": self.op, "cause": self.suspicion}


def asked_for_integer(path: Path) -> list[Asked]:
    """Every weighted operator of a QDQ file that stands between quantized tensors."""
    graph = onnx.load(path, load_external_data=False).graph
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in graph.output}
    constants = {i.name for i in graph.initializer}
    found: list[Asked] = []
    for node in graph.node:
        if node.op_type in _INTEGER_BY_NAME:
            asked = [name for name in node.input if name in constants]
            found.append(Asked(name=node.name, op=node.op_type, stored=tuple(asked), suspicion=_BY_NAME))
            continue
        if node.op_type not in _WEIGHTED:
            continue
        sources = [makers.get(name) for name in node.input[:2]]
        if any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        stored = [s.input[0] for s in sources if s is not None and s.input[0] in constants]
        found.append(
            Asked(
                name=node.name,
                op=node.op_type,
                stored=tuple(stored),
                suspicion=_suspicion(node, makers, readers, outputs),
            )
        )
    return found


def _suspicion(
    node: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    readers: dict[str, list[onnx.NodeProto]],
    outputs: set[str],
) -> str:
    if node.op_type == "ConvTranspose":
        return "ConvTranspose has no integer kernel in most CPU runtimes"
    bias = makers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if (
        len(node.input) > 2
        and node.op_type == "Gemm"
        and (bias is None or bias.op_type != "DequantizeLinear")
    ):
        return "its bias is in float"
    tensor = node.output[0]
    while len(users := readers.get(tensor, [])) == 1 and users[0].op_type in _MERGED:
        tensor = users[0].output[0]
    if tensor in outputs and node.op_type not in _HANDS_OUT_FLOATS:
        return "its output leaves the model, and nothing re-quantizes it"
    others = sorted({u.op_type for u in users if u.op_type != "QuantizeLinear"})
    if others and not (node.op_type in _HANDS_OUT_FLOATS and len(node.input) > 2):
        return f"its output is read by {', '.join(others)}, which nothing re-quantizes"
    if len({u.op_type for u in users}) > 1 or len(users) > 1:
        return "its output is quantized more than once"
    return "the runtime did not merge it with the pairs around it"


def float_operators(asked: Iterable[Asked], executed: Iterable[NodePrecision]) -> list[Asked]:
    """Those that the runtime runs in float all the same."""
    served: set[str] = set()
    for node in executed:
        if node.integer:
            # Runtimes add a running number to a merged operator's name, or join the names of several.
            served |= {_NUMBERED.sub("", name) for name in _JOINED.split(node.name)}
            served |= {node.name, *node.covers}
    return [a for a in asked if a.name not in served and not served.intersection(a.stored)]
