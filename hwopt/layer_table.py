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
    MULTIPLY = "multiply"  # of two activations, as in a gate
    POOL = "pool"
    GLOBAL_POOL = "global_pool"
    CONCAT = "concat"
    ACTIVATION = "activation"  # a function of one value that is more than a comparison
    UPSAMPLE = "upsample"  # by repeating pixels
    OTHER = "other"


_KINDS: Final = {
    "Gemm": LayerKind.DENSE,
    "MatMul": LayerKind.DENSE,
    "Add": LayerKind.ADD,
    "Mul": LayerKind.MULTIPLY,
    "Concat": LayerKind.CONCAT,
    "MaxPool": LayerKind.POOL,
    "AveragePool": LayerKind.POOL,
    "GlobalAveragePool": LayerKind.GLOBAL_POOL,
    **dict.fromkeys(
        (
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Gelu",
            "Softplus",
            "MultiThreshold",
        ),
        LayerKind.ACTIVATION,
    ),
}
_VIEWS: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout")
_QUANT: Final = ("Quant", "IntQuant", "BipolarQuant")  # of QONNX
_SHAPED: Final = frozenset({*_QUANT, "MultiThreshold"})  # of QONNX: outputs are shaped like inputs
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
        "Cast",
        "Slice",
        "BatchNormalization",
        "Dropout",
        *_QUANT,
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
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)  # at the top and at the left
    pad_after: tuple[int, int] = (0, 0)  # at the bottom and at the right
    groups: int = 1
    weight_bits: int = _FLOAT_BITS  # 32 is float
    activation_bits: int = _FLOAT_BITS  # of the input
    out_bits: int = _FLOAT_BITS  # that the output is stored in; float where it feeds what computes in float
    macs: int = 0
    weights: int = 0
    dynamic: bool = False  # both factors are activations
    thresholds: bool = False  # scales are no powers of two, so that no shift requantizes the output
    constant: bool = False  # an addition or multiplication of something stored, such as a bias

    @property
    def rows(self) -> int:
        """Outputs of the weight matrix (MH): output channels."""
        return self.out_shape[0]

    @property
    def columns(self) -> int:
        """Inputs of the weight matrix (MW): kernel area times input channels of a group."""
        return self.kernel[0] * self.kernel[1] * self.in_shape[0] // self.groups

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that a window spans."""
        (tall, wide), (down, across) = self.kernel, self.dilation
        return ((tall - 1) * down + 1, (wide - 1) * across + 1)

    @property
    def pixels(self) -> int:
        """Output positions."""
        return prod(self.out_shape[1:])

    @property
    def is_weighted(self) -> bool:
        """Whether it has a weight matrix."""
        return self.kind in {LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.DENSE}


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
    if any(node.op_type in _SHAPED for node in model.graph.node):
        known = shape_inference.infer_shapes(_without_quant(model), data_prop=True).graph
        del model.graph.output[:]
        model.graph.output.extend(known.output)
        model.graph.value_info.extend(known.value_info)
    else:
        model = shape_inference.infer_shapes(model, data_prop=True)
    return _Reader(model.graph).read()


def _without_quant(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same shapes with operators that ONNX knows: those of QONNX leave a shape as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type in _SHAPED:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    return copy


class _Reader:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                stored = next((a.t for a in node.attribute if a.name == "value"), None)
                if stored is not None:
                    self.constants[node.output[0]] = stored
        taken = [node.name for node in graph.node if node.name]
        self.unique = {name for name in taken if taken.count(name) == 1} if len(taken) < 5000 else set(taken)
        self.stored: dict[str, bool] = {}
        self.maker = {output: node for node in graph.node for output in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
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
            if len(weight) not in {3, 4}:
                return LayerKind.OTHER  # three spatial axes
            depthwise = weight[1] == 1 and _attribute(node, "group", 1) == weight[0] > 1
            return LayerKind.DEPTHWISE if depthwise else LayerKind.CONV
        if node.op_type in _FREE or (node.op_type == "Concat" and not list(self.data_inputs(node))):
            return None
        if node.op_type.endswith("Pool") and len(_attribute(node, "kernel_shape", [])) > 2:
            return LayerKind.OTHER
        if node.op_type == "Resize" and _attribute(node, "mode", b"nearest") == b"nearest":
            return LayerKind.UPSAMPLE
        return _KINDS.get(node.op_type, LayerKind.OTHER)

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise StageFailedError(
                f"the shape of {name!r} is not known",
                fix="export the model with fixed sizes for all axes but the batch",
            )
        if 0 in self.shapes[name]:
            raise StageFailedError(
                f"{name!r} has an axis of size 0", fix="export the model with its real sizes"
            )
        return self.shapes[name]

    def name(self, node: onnx.NodeProto) -> str:
        """Of a node, or of its output where two nodes share a name."""
        return str(node.name if node.name in self.unique else node.output[0])

    def layer(self, node: onnx.NodeProto, kind: LayerKind) -> Layer:
        in_shape = _as_planes(_without_batch(self.shape(node.input[0])), kind)
        out_shape = _as_planes(_without_batch(self.shape(node.output[0])), kind)
        if kind is LayerKind.UPSAMPLE and any(o % i for o, i in zip(out_shape, in_shape, strict=False)):
            kind = LayerKind.OTHER  # not by repeating pixels
        fields: dict[str, Any] = {}
        if kind in {LayerKind.CONV, LayerKind.DEPTHWISE}:
            weight = self.shape(node.input[1])
            fields = {
                "kernel": _pair(weight[2:], 1),
                "stride": _pair(_attribute(node, "strides", [1]), 1),
                "dilation": _pair(_attribute(node, "dilations", [1] * len(weight[2:])), 1),
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
                "dilation": _pair(_attribute(node, "dilations", [1] * len(kernel)), 1),
                "groups": in_shape[0],
            }
        elif node.op_type in {"ConvTranspose", "Einsum"}:
            fields = {"macs": self.products(node)}
        if "stride" in fields:
            fields |= _pads(node, in_shape, out_shape, fields)
        weighted = "weights" in fields
        stored = [not self.is_activation(name) for name in node.input[:2]]
        return Layer(
            name=self.name(node),
            op=node.op_type,
            kind=kind,
            inputs=tuple(dict.fromkeys(self.source(name) for name in self.data_inputs(node))),
            in_shape=in_shape,
            out_shape=out_shape,
            weight_bits=self.bits(node.input[1]) if weighted else _FLOAT_BITS,
            activation_bits=self.bits(node.input[0] if not stored[0] else node.input[-1]),
            out_bits=self.bits_after(node.output[0]),
            dynamic=weighted and not stored[1],
            thresholds=weighted and not self.shifts(node),
            constant=kind in {LayerKind.ADD, LayerKind.MULTIPLY} and any(stored),
            **fields,
        )

    def data_inputs(self, node: onnx.NodeProto) -> Iterable[str]:
        count = {"Add": 2, "Mul": 2, "Concat": len(node.input)}.get(node.op_type, 1)
        return [name for name in node.input[:count] if self.is_activation(name)]

    def is_activation(self, name: str) -> bool:
        """Whether a tensor depends on the network's input: one that is made of stored tensors alone does not."""
        waiting = [name]
        while waiting:
            top = waiting[-1]
            node = self.maker.get(top)
            parts = [n for n in node.input if n] if node is not None else []
            if top in self.stored:
                waiting.pop()
            elif node is None or not parts:
                self.stored[top] = top in self.constants or node is not None
            elif all(n in self.stored for n in parts):
                self.stored[top] = all(self.stored[n] for n in parts)
            else:
                waiting += [n for n in parts if n not in self.stored]
        return not self.stored[name]

    def shifts(self, node: onnx.NodeProto) -> bool:
        """Whether the scales of weights and output are powers of two; a float layer is taken to get such."""
        pairs = [self.maker.get(node.input[1]), *self.quantizers_after(node.output[0])]
        for pair in pairs:
            scale = self.constants.get(pair.input[1]) if pair is not None and len(pair.input) > 1 else None
            quantizes = pair is not None and pair.op_type in {"QuantizeLinear", "DequantizeLinear", *_QUANT}
            if quantizes and scale is not None and (np.frexp(numpy_helper.to_array(scale))[0] != 0.5).any():
                return False
        return True

    def products(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulates of the operators that no cost model prices so far."""
        if node.op_type == "ConvTranspose":
            return prod(self.shape(node.input[1])) * prod(_without_batch(self.shape(node.input[0]))[1:])
        terms = _attribute(node, "equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
        sizes: dict[str, int] = {}
        for term, name in zip(terms, node.input, strict=False):
            sizes |= dict(zip(term, self.shape(name), strict=False))
        return prod(sizes.values()) if len(terms) > 1 else 0

    def source(self, name: str) -> str:
        """The layer that a tensor comes from, through free operators; the empty string is the input."""
        while (node := self.maker.get(name)) is not None:
            if self.kind(node) is not None:
                return self.name(node)
            name = node.input[0]
        return ""

    def bits(self, name: str) -> int:
        """Width of a tensor's codes, looked up through its DequantizeLinear; 32 for float."""
        node = self.maker.get(name)
        while node is not None and node.op_type in {*_VIEWS, "MaxPool", "Relu"}:
            node = self.maker.get(node.input[0])
        if node is None:
            return _FLOAT_BITS
        if node.op_type in _QUANT:
            return self.quant_bits(node)
        if node.op_type == "Concat":
            return max(self.bits(side) for side in node.input)
        if node.op_type != "DequantizeLinear":
            return _FLOAT_BITS
        stored = self.constants.get(node.input[0])
        if stored is not None:
            return _bits_of(numpy_helper.to_array(stored))
        quantize = self.maker.get(node.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            return _FLOAT_BITS
        return min(self.clipped_bits(quantize), self.container(quantize))

    def clipped_bits(self, quantize: onnx.NodeProto) -> int:
        """Width of the codes that a clip before a quantizer leaves; 32 without one."""
        clip = self.maker.get(quantize.input[0])
        ends = (
            [name for name in clip.input[1:3] if name] if clip is not None and clip.op_type == "Clip" else []
        )
        if len(ends) < 2 or any(name not in self.constants for name in (*ends, quantize.input[1])):
            return _FLOAT_BITS
        low, high = (float(numpy_helper.to_array(self.constants[name])) for name in ends)
        scale = numpy_helper.to_array(self.constants[quantize.input[1]])
        steps = (high - low) / float(np.max(scale))
        return max(1, int(np.ceil(np.log2(round(steps) + 1)))) if 0 < steps < 2**_FLOAT_BITS else _FLOAT_BITS

    def container(self, quantize: onnx.NodeProto) -> int:
        """Width of the integers that a QuantizeLinear gives."""
        if len(quantize.input) < 3 or quantize.input[2] not in self.constants:
            return 8  # uint8 is what ONNX takes without a zero point
        stored = self.constants[quantize.input[2]]
        four = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
        return 4 if stored.data_type in four else numpy_helper.to_array(stored).dtype.itemsize * 8

    def quant_bits(self, node: onnx.NodeProto) -> int:
        """Width that a QONNX node rounds to."""
        if node.op_type == "BipolarQuant":
            return 1
        return (
            int(numpy_helper.to_array(self.constants[node.input[3]])) if len(node.input) > 3 else _FLOAT_BITS
        )

    def quantizers_after(self, name: str) -> list[onnx.NodeProto]:
        """The first quantizers behind an output, through what costs nothing."""
        for _ in range(8):  # as many free operators may stand between
            followers = self.users.get(name, [])
            found = [n for n in followers if n.op_type in {"QuantizeLinear", *_QUANT}]
            if found or len(followers) != 1 or followers[0].op_type not in {"Relu", "Clip", *_VIEWS}:
                return found
            name = followers[0].output[0]
        return []

    def bits_after(self, name: str) -> int:
        """Width of an output as it is stored: of the first quantizer behind it, else float."""
        for node in self.quantizers_after(name):
            if node.op_type in _QUANT:
                return self.quant_bits(node)
            pair = next(iter(self.users.get(node.output[0], [])), None)
            return _FLOAT_BITS if pair is None else self.bits(pair.output[0])
        return _FLOAT_BITS


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


def _pads(
    node: onnx.NodeProto, in_shape: Shape, out_shape: Shape, fields: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """Padding before and after, as the file says it or as ``auto_pad`` comes to."""
    auto = _attribute(node, "auto_pad", b"NOTSET")
    if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
        less, more = [], []
        for axis in (0, 1):
            span = (fields["kernel"][axis] - 1) * fields["dilation"][axis] + 1
            steps = (out_shape[axis + 1] - 1) * fields["stride"][axis]
            total = max(0, steps + span - in_shape[axis + 1])
            less.append(total // 2)
            more.append(total - total // 2)
        first, second = (less, more) if auto == b"SAME_UPPER" else (more, less)
        return {"padding": (first[0], first[1]), "pad_after": (second[0], second[1])}
    pads = _attribute(node, "pads", [0, 0])
    half = len(pads) // 2
    return {"padding": _pair(pads[:half], 0), "pad_after": _pair(pads[half:], 0)}


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


def foreign(model: onnx.ModelProto) -> Mapping[str, list[str]]:
    """Operators of kind OTHER, and products of two activations, without looking at any shape."""
    reader = _Reader(model.graph)
    result: dict[str, list[str]] = {}
    for node in model.graph.node:
        name = reader.name(node)
        if node.op_type not in {*_KINDS, *_FREE, "Conv", "Resize"} or (
            node.op_type == "Resize" and reader.kind(node) is LayerKind.OTHER
        ):
            result.setdefault(node.op_type, []).append(name)
        elif node.op_type in {"MatMul", "Gemm", "Conv"} and reader.is_activation(node.input[1]):
            result.setdefault(f"{node.op_type} of two activations", []).append(name)
    return result
