"""An ONNX file as a table of layers: shapes, multiply-accumulates, bits. Read by cost models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from hwopt.errors import StageFailedError

Shape = tuple[int, ...]

_FLOAT_BITS: Final = 32


class LayerKind(StrEnum):
    """What a layer is to a cost model."""

    CONV = "conv"
    DEPTHWISE = "depthwise"
    DENSE = "dense"
    ADD = "add"
    POOL = "pool"
    GLOBAL_POOL = "global_pool"
    OTHER = "other"


_KINDS: Final = {
    "Gemm": LayerKind.DENSE,
    "MatMul": LayerKind.DENSE,
    "Add": LayerKind.ADD,
    "Mul": LayerKind.ADD,
    "MaxPool": LayerKind.POOL,
    "AveragePool": LayerKind.POOL,
    "GlobalAveragePool": LayerKind.GLOBAL_POOL,
}
# Merged into a neighbour, or a change of view that costs nothing.
_FREE: Final = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "Relu",
        "Clip",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Identity",
        "Constant",
        "Shape",
        "Gather",
        "Concat",
        "Cast",
        "Slice",
        "BatchNormalization",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer for a batch of one."""

    name: str
    op: str
    kind: LayerKind
    inputs: tuple[str, ...]  # names of the layers that feed it; empty for the network's input
    in_shape: Shape  # C×H×W, or (F,) for dense layers
    out_shape: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)  # at the top and at the left
    groups: int = 1
    weight_bits: int = _FLOAT_BITS  # 32 is float
    activation_bits: int = _FLOAT_BITS  # of the input
    macs: int = 0
    weights: int = 0

    @property
    def rows(self) -> int:
        """Outputs of the weight matrix (MH): output channels."""
        return self.out_shape[0]

    @property
    def columns(self) -> int:
        """Inputs of the weight matrix (MW): kernel area times input channels of a group."""
        return self.kernel[0] * self.kernel[1] * self.in_shape[0] // self.groups

    @property
    def pixels(self) -> int:
        """Output positions."""
        return prod(self.out_shape[1:])


def layer_table(path: Path) -> list[Layer]:
    """Layers of an ONNX file in order; a dynamic batch is taken as one.

    Raises:
        StageFailedError: a shape stays unknown.
    """
    return layers_of(onnx.load(path))


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """The same of a loaded model, which may lose what it says of shapes."""
    for value in model.graph.input:
        dim = value.type.tensor_type.shape.dim
        if len(dim) and not dim[0].HasField("dim_value"):
            dim[0].Clear()
            dim[0].dim_value = 1
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model = shape_inference.infer_shapes(model, data_prop=True)
    return _Reader(model.graph).read()


class _Reader:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {i.name: i for i in graph.initializer}
        self.maker = {output: node for node in graph.node for output in node.output}
        self.shapes: dict[str, Shape] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                self.shapes[value.name] = tuple(d.dim_value for d in dims)
        for initializer in graph.initializer:
            self.shapes[initializer.name] = tuple(initializer.dims)

    def read(self) -> list[Layer]:
        layers: list[Layer] = []
        for node in self.graph.node:
            kind = self.kind(node)
            if kind is not None:
                layers.append(self.layer(node, kind))
        return layers

    def kind(self, node: onnx.NodeProto) -> LayerKind | None:
        if node.op_type == "Conv":
            weight = self.shape(node.input[1])
            depthwise = weight[1] == 1 and _attribute(node, "group", 1) == weight[0] > 1
            return LayerKind.DEPTHWISE if depthwise else LayerKind.CONV
        if node.op_type in _FREE:
            return None
        return _KINDS.get(node.op_type, LayerKind.OTHER)

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise StageFailedError(
                f"the shape of {name!r} is not known",
                fix="export the model with fixed sizes for all axes but the batch",
            )
        return self.shapes[name]

    def layer(self, node: onnx.NodeProto, kind: LayerKind) -> Layer:
        in_shape = _as_planes(_without_batch(self.shape(node.input[0])), kind)
        out_shape = _as_planes(_without_batch(self.shape(node.output[0])), kind)
        fields: dict[str, Any] = {}
        if kind in {LayerKind.CONV, LayerKind.DEPTHWISE}:
            weight = self.shape(node.input[1])
            fields = {
                "kernel": _pair(weight[2:], 1),
                "stride": _pair(_attribute(node, "strides", [1]), 1),
                "padding": _padding(node),
                "groups": _attribute(node, "group", 1),
                "macs": prod(weight[1:]) * prod(out_shape),
                "weights": prod(weight),
            }
        elif kind is LayerKind.DENSE:
            weight = self.shape(node.input[1])
            # A linear layer is a 1×1 convolution over as many pixels as there are vectors.
            fields = {"macs": prod(out_shape) * in_shape[0], "weights": prod(weight)}
        elif kind is LayerKind.POOL:
            kernel = _attribute(node, "kernel_shape", [1])
            fields = {
                "kernel": _pair(kernel, 1),
                "stride": _pair(_attribute(node, "strides", [1] * len(kernel)), 1),
                "padding": _padding(node),
                "groups": in_shape[0],
            }
        weighted = "weights" in fields
        return Layer(
            name=node.name or node.output[0],
            op=node.op_type,
            kind=kind,
            inputs=tuple(dict.fromkeys(self.source(name) for name in self.data_inputs(node))),
            in_shape=in_shape,
            out_shape=out_shape,
            weight_bits=self.bits(node.input[1]) if weighted else _FLOAT_BITS,
            activation_bits=self.bits(node.input[0]),
            **fields,
        )

    def data_inputs(self, node: onnx.NodeProto) -> Iterable[str]:
        count = 2 if node.op_type in {"Add", "Mul"} else 1
        return [name for name in node.input[:count] if name not in self.constants]

    def source(self, name: str) -> str:
        """The layer that a tensor comes from, through free operators; the empty string is the input."""
        while (node := self.maker.get(name)) is not None:
            if self.kind(node) is not None:
                return str(node.name or node.output[0])
            name = node.input[0]
        return ""

    def bits(self, name: str) -> int:
        """Width of a tensor's codes, looked up through its DequantizeLinear; 32 for float."""
        node = self.maker.get(name)
        while node is not None and node.op_type in {"Reshape", "Flatten", "Transpose", "MaxPool", "Identity"}:
            node = self.maker.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return _FLOAT_BITS
        stored = self.constants.get(node.input[0])
        if stored is not None:
            return _bits_of(numpy_helper.to_array(stored))
        quantize = self.maker.get(node.input[0])
        if quantize is None:
            return _FLOAT_BITS
        clip = self.maker.get(quantize.input[0])
        if clip is not None and clip.op_type == "Clip" and all(i in self.constants for i in clip.input[1:3]):
            ends = [float(numpy_helper.to_array(self.constants[i])) for i in clip.input[1:3]]
            scale = float(numpy_helper.to_array(self.constants[quantize.input[1]]))
            codes = round((ends[1] - ends[0]) / scale) + 1
            bits = max(1, int(np.ceil(np.log2(codes))))
            container = numpy_helper.to_array(self.constants[quantize.input[2]]).dtype.itemsize * 8
            return min(bits, container)
        return int(numpy_helper.to_array(self.constants[quantize.input[2]]).dtype.itemsize * 8)


def _bits_of(codes: Any) -> int:
    """Least width that holds every code of a stored tensor, as the hardware would store it."""
    low, high = int(codes.min()), int(codes.max())
    if low >= 0:
        return max(1, high.bit_length())
    return max((-low - 1).bit_length(), high.bit_length()) + 1


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _pair(values: Sequence[int], missing: int) -> tuple[int, int]:
    """Height and width; one-dimensional layers have height 1."""
    return (values[0], values[1]) if len(values) == 2 else (missing, values[-1])


def _padding(node: onnx.NodeProto) -> tuple[int, int]:
    pads = _attribute(node, "pads", [0, 0])
    return _pair(pads[: len(pads) // 2], 0)


def _as_planes(shape: Shape, kind: LayerKind) -> Shape:
    """Channels first with a plane behind; sequences have height 1, features of linear layers are channels."""
    if kind is LayerKind.DENSE and len(shape) > 1:
        return (shape[-1], 1, prod(shape[:-1]))
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _without_batch(shape: Shape) -> Shape:
    return tuple(shape[1:]) if len(shape) > 1 else tuple(shape)


def unsupported(layers: Iterable[Layer]) -> Mapping[str, list[str]]:
    """Operators of kind OTHER with the names of their layers."""
    result: dict[str, list[str]] = {}
    for layer in layers:
        if layer.kind is LayerKind.OTHER:
            result.setdefault(layer.op, []).append(layer.name)
    return result
