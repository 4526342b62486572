"""The most memory that a network's activations need at once, by the life of every tensor. An estimate."""

from __future__ import annotations

from math import prod
from typing import Final

import onnx
from onnx import helper, shape_inference

_FUSED: Final = frozenset(
    {"QuantizeLinear", "Relu", "Clip", "BatchNormalization"}
)  # into what makes their input
_VIEWS: Final = frozenset(
    {"DequantizeLinear", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
)


def activation_bytes(model: onnx.ModelProto) -> int | None:
    """Peak bytes of live activations for a batch of one, nodes run in the order of the file.

    Tensors that runtimes keep in registers or share are not counted twice: what is quantized at once, what an
    activation function replaces in place, views. None where a shape is not known.
    """
    graph = shape_inference.infer_shapes(model).graph
    stored = {i.name for i in graph.initializer}
    sizes = {v.name: _bytes(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constant = set(stored)
    for node in graph.node:
        if all(name in constant or not name for name in node.input):
            constant.update(node.output)
    owner: dict[str, str] = {}  # tensor -> the one whose memory it lies in

    def of(name: str) -> str:
        return owner.get(name, name)

    for node in graph.node:
        if node.op_type in _VIEWS and node.input and node.input[0] not in constant:
            owner[node.output[0]] = of(node.input[0])
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            last[of(name)] = index
    for output in graph.output:
        last[of(output.name)] = len(graph.node)
    live = {of(v.name) for v in graph.input if v.name not in stored}
    peak = 0
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name not in constant and name not in owner:
                live.add(_end(name, readers))  # what is fused into this node leaves its own result here
        found = [sizes.get(name) for name in live]
        if any(size is None for size in found):
            return None
        peak = max(peak, sum(size for size in found if size is not None))
        live = {name for name in live if last.get(name, -1) > index}
    return peak


def _end(name: str, readers: dict[str, list[onnx.NodeProto]]) -> str:
    """The tensor that a node leaves behind, with what runtimes fuse into it."""
    after = readers.get(name, [])
    while len(after) == 1 and after[0].op_type in _FUSED and after[0].input[0] == name:
        name = after[0].output[0]
        after = readers.get(name, [])
    return name


def _bytes(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    dims[:1] = [1] if dims and dims[0] is None else dims[:1]  # the batch
    known = [d for d in dims if d is not None]
    if len(known) < len(dims):
        return None
    try:
        width = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    except (KeyError, TypeError, ValueError):
        return None
    return prod(known) * int(width)
