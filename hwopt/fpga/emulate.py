"""Run a quantized ONNX file in the arithmetic of an FPGA: integers and shifts, bit by bit.

Nothing is computed in floating point that could round: every tensor is an integer mantissa with a power of
two, exactly as accumulators, shifts and clamps of the circuit hold it. What a runtime computes with Q/DQ
pairs in float32 is an approximation of this; the two are compared, not assumed equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper

from hwopt.errors import ConfigError, StageFailedError
from hwopt.fpga.fixed import (
    Fixed,
    Int,
    NotExactError,
    added,
    along,
    divide_half_even,
    one_exponent,
    shifted,
    split,
)

_FAR: Final = 2.0**40  # bounds beyond are no bounds
_EXACT: Final = 2**53  # products are summed in float64, which holds every integer up to here


Attributes = Mapping[str, Any]
Operator = Callable[[list[Any], Attributes], Any]


class Circuit:
    """A quantized model as integer arithmetic.

    Raises:
        ConfigError: an operator has no integer arithmetic here, a tensor that is not quantized enters a product,
            or two scales meet that no shift aligns.
    """

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        stored = {i.name for i in self.graph.initializer}
        inputs = [value for value in self.graph.input if value.name not in stored]
        if len(inputs) != 1:
            raise ConfigError(f"the model has {len(inputs)} inputs, and the emulation feeds one")
        self.input = inputs[0].name
        self.shape = tuple(
            d.dim_value if d.HasField("dim_value") else None for d in inputs[0].type.tensor_type.shape.dim
        )
        self.constants: dict[str, Any] = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                self.constants[node.output[0]] = _constant([], given)
        missing = sorted({n.op_type for n in self.graph.node} - set(_OPERATORS))
        if missing:
            raise ConfigError(
                f"no integer arithmetic for {', '.join(missing)}",
                fix="quantize a model of convolutions, linear layers, pooling, sums and ReLU for an FPGA profile",
            )

    def run(self, x: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
        """Outputs of a batch of float inputs, which the first quantizer takes in."""
        values: dict[str, Any] = {**self.constants, self.input: x}
        left = {name: 0 for node in self.graph.node for name in node.input}
        for node in self.graph.node:
            for name in node.input:
                left[name] += 1
        outputs = {value.name for value in self.graph.output}
        for node in self.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            taken = [values[name] if name else None for name in node.input]
            try:
                values[node.output[0]] = _OPERATORS[node.op_type](taken, attributes)
            except NotExactError as error:
                raise ConfigError(
                    f"{node.op_type} {node.name or node.output[0]}: {error}", fix=error.fix
                ) from None
            for name in node.input:
                left[name] -= 1
                if not left[name] and name not in outputs and name not in self.constants:
                    values.pop(name, None)
        return [_as_float(values[value.name]) for value in self.graph.output]


def _as_float(value: Any) -> npt.NDArray[np.float64]:
    return value.value() if isinstance(value, Fixed) else np.asarray(value, np.float64)


def _quantize(taken: list[Any], attributes: Attributes) -> Any:
    x, scale = taken[0], taken[1]
    low, high = code_range(zero_of(taken, attributes).dtype)
    zero = zero_of(taken, attributes).astype(np.int64)
    axis, ndim = int(attributes.get("axis", 1)), np.ndim(x.m if isinstance(x, Fixed) else x)
    if not (np.isfinite(scale).all() and (np.asarray(scale) > 0).all()):
        raise NotExactError("a scale is not above 0", "quantize anew")
    e, s = split(scale)
    e, s, zero = (along(part, axis, ndim) for part in (e, s, zero))
    if isinstance(x, Fixed) and not (x.shifts and (s == 1).all()):
        # Thresholds: the least m of each code, which the tools compute in doubles as this does.
        real = x.m * (x.scale / np.ldexp(s, e.astype(np.int32)))
        codes = np.clip(np.rint(real), low - zero, high - zero).astype(np.int64)
    elif isinstance(x, Fixed):
        shift = x.e - e  # the code is m·2^shift / d
        left = shifted(x.m, np.maximum(shift, 0))
        codes = divide_half_even(left, shifted(np.asarray(x.d), np.maximum(-shift, 0)))
    else:
        if np.isnan(x).any():
            raise NotExactError("an input is NaN", "give finite inputs")
        real = np.ldexp(np.asarray(x, np.float64), (-e).astype(np.int32)) / s
        codes = np.clip(np.rint(real), low - zero, high - zero).astype(np.int64)
    return _Codes(np.clip(codes + zero, low, high))


_CONTAINERS: Final[dict[int, type]] = {
    onnx.TensorProto.UINT8: np.uint8,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.UINT16: np.uint16,
    onnx.TensorProto.INT16: np.int16,
}


def zero_of(taken: list[Any], attributes: Attributes) -> npt.NDArray[Any]:
    """The zero point of a quantizer, whose type is that of the codes; ONNX takes uint8 where nothing is said."""
    if len(taken) > 2 and taken[2] is not None:
        return np.asarray(taken[2])
    asked = int(attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    if asked not in _CONTAINERS:
        raise NotExactError("output_dtype is of no 8 or 16 bits", "give a zero point of the type")
    return np.zeros((), _CONTAINERS[asked])


@dataclass(frozen=True, slots=True)
class _Codes:
    """Integers between a quantizer and its dequantizer."""

    values: Int


def code_range(kind: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest code of an integer type, those of 4 bits included."""
    name = kind.name
    bits = int("".join(c for c in name if c.isdigit()))
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _dequantize(taken: list[Any], attributes: Attributes) -> Fixed:
    stored = taken[0].values if isinstance(taken[0], _Codes) else np.asarray(taken[0]).astype(np.int64)
    axis = int(attributes.get("axis", 1))
    zero = np.asarray(taken[2]).astype(np.int64) if len(taken) > 2 and taken[2] is not None else np.int64(0)
    if attributes.get("block_size"):
        raise NotExactError("scales of blocks have no shift each", "quantize with one scale a channel")
    e, s = (along(part, axis, stored.ndim) for part in split(taken[1]))
    return Fixed(stored - along(np.asarray(zero), axis, stored.ndim), e, s=s)


def _exact(x: Any, op: str) -> Fixed:
    if not isinstance(x, Fixed):
        raise NotExactError(f"an input of {op} is not quantized", "quantize every layer of the model")
    if x.d != 1:
        raise NotExactError(f"an average enters {op} unrounded", "put a quantizer behind the average")
    return x


def _checked(product: npt.NDArray[np.float64], x: Fixed, w: Fixed) -> Int:
    # No partial sum can be greater than all products with one sign.
    terms = w.m.size // max(1, w.m.shape[0] if w.m.ndim > 1 else 1)
    if x.m.size and float(np.abs(x.m).max()) * float(np.abs(w.m).max()) * max(terms, w.m.shape[0]) >= _EXACT:
        raise StageFailedError("an accumulator passes 53 bits", fix="quantize to fewer bits")
    return product.astype(np.int64)


def _bias(total: Fixed, bias: Any, axis: int) -> Fixed:
    if bias is None:
        return total
    if not isinstance(bias, Fixed):
        raise NotExactError("the bias is a float", "quantize with bias: int32")
    ndim = total.m.ndim
    e, scales = (along(part.reshape(-1), axis, ndim) for part in (bias.e, bias.s))
    return added(total, Fixed(along(bias.m, axis, ndim), e, s=scales))


def _conv(taken: list[Any], attributes: Attributes) -> Fixed:
    x, w = one_exponent(_exact(taken[0], "Conv")), _exact(taken[1], "Conv")
    dims = x.m.ndim - 2
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        raise NotExactError("auto_pad is not read", "export with explicit pads")
    widths = [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)]
    padded = torch.from_numpy(np.pad(x.m, widths).astype(np.float64))
    weight = torch.from_numpy(w.m.astype(np.float64))
    convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[dims]
    found = convolve(
        padded,
        weight,
        stride=tuple(attributes.get("strides", [1] * dims)),
        dilation=tuple(attributes.get("dilations", [1] * dims)),
        groups=int(attributes.get("group", 1)),
    )
    e, scales = (along(part.reshape(-1), 1, x.m.ndim) for part in (w.e, w.s))
    total = Fixed(_checked(found.numpy(), x, w), x.e + e, s=x.s * scales)
    return _bias(total, taken[2] if len(taken) > 2 else None, 1)


def _product(x: Fixed, w: Fixed, axis: int) -> Fixed:
    """``x @ w`` with weights whose scales run along ``axis`` of w."""
    x = one_exponent(x)
    if max(w.e.size, w.s.size) > 1 and (w.e if w.e.size > 1 else w.s).shape[axis] == 1:
        w = one_exponent(w)  # scales along the sum cannot leave it
    found = _checked(x.m.astype(np.float64) @ w.m.astype(np.float64), x, w)
    e = w.e.reshape(-1) if w.e.size > 1 else w.e.reshape(())
    scales = w.s.reshape(-1) if w.s.size > 1 else w.s.reshape(())
    return Fixed(found, x.e + e, s=x.s * scales)


def _gemm(taken: list[Any], attributes: Attributes) -> Fixed:
    if (
        attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
        or attributes.get("transA", 0)
    ):
        raise NotExactError("alpha, beta or transA are set", "export a plain linear layer")
    x, w = _exact(taken[0], "Gemm"), _exact(taken[1], "Gemm")
    if attributes.get("transB", 0):
        w = Fixed(w.m.T, w.e.T, s=w.s.T)
    return _bias(_product(x, w, 1), taken[2] if len(taken) > 2 else None, 1)


def _matmul(taken: list[Any], attributes: Attributes) -> Fixed:
    return _product(_exact(taken[0], "MatMul"), _exact(taken[1], "MatMul"), -1)


def _add(taken: list[Any], attributes: Attributes) -> Fixed:
    return added(_exact(taken[0], "Add"), _exact(taken[1], "Add"))


def _mul(taken: list[Any], attributes: Attributes) -> Fixed:
    a, b = _exact(taken[0], "Mul"), _exact(taken[1], "Mul")
    return Fixed(a.m * b.m, a.e + b.e, s=a.s * b.s)


def _relu(taken: list[Any], attributes: Attributes) -> Fixed:
    x = taken[0]
    if not isinstance(x, Fixed):
        raise NotExactError("the input of Relu is not quantized", "quantize every layer of the model")
    return replace(x, m=np.maximum(x.m, 0))


def _clip(taken: list[Any], attributes: Attributes) -> Any:
    x = taken[0]
    bounds = (
        [*taken[1:3], None, None][:2] if len(taken) > 1 else [attributes.get("min"), attributes.get("max")]
    )
    ends = [None if b is None else float(_as_float(b)) for b in bounds]
    if isinstance(x, Fixed) and not x.shifts:
        x = x.value()  # the thresholds behind it hold the bounds
    if not isinstance(x, Fixed):  # also the network's input, before its quantizer
        return np.clip(x, -np.inf if ends[0] is None else ends[0], np.inf if ends[1] is None else ends[1])
    finest = x.e
    for end in ends:
        if end is not None and end and abs(end) < _FAR:
            finest = np.minimum(finest, _lowest_bit(end))
    m = shifted(x.m, x.e - finest)
    most = float(np.abs(x.value()).max()) if x.m.size else 0.0
    for end, keep in zip(ends, (np.maximum, np.minimum), strict=True):
        if end is not None and abs(end) <= most:  # a bound that nothing reaches does nothing
            bound = np.ldexp(end, (-finest).astype(np.int32)).astype(np.int64) * x.d
            m = keep(m, bound)
    return Fixed(m, finest, x.d)


def _lowest_bit(value: float) -> int:
    """Exponent of the last bit of a float.

    Raises:
        NotExactError: it needs more than 20 bits behind the point.
    """
    for e in range(0, -21, -1):
        if float(np.ldexp(value, -e)).is_integer():
            return e
    raise NotExactError(f"the bound {value!r} has no short binary form", "clip at a multiple of 2^-20")


def _max_pool(taken: list[Any], attributes: Attributes) -> Fixed:
    x = _exact(taken[0], "MaxPool")  # scales are of channels, and windows stay in one
    windows = _windows(x.m, attributes, fill=np.iinfo(np.int64).min)
    return replace(x, m=windows.max(axis=tuple(range(-(x.m.ndim - 2), 0))))


def _windows(m: Int, attributes: Attributes, fill: int) -> Int:
    """Windows of a pooling: shape of the output, then of the kernel."""
    dims = m.ndim - 2
    kernel = list(attributes["kernel_shape"])
    pads = list(attributes.get("pads", [0] * 2 * dims))
    if attributes.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        raise NotExactError("auto_pad is not read", "export with explicit pads")
    if attributes.get("ceil_mode", 0) or any(d != 1 for d in attributes.get("dilations", [1])):
        raise NotExactError("ceil_mode and dilations of a pooling are not emulated")
    widths = [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)]
    padded = np.pad(m, widths, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=tuple(range(2, 2 + dims)))
    strides = attributes.get("strides", [1] * dims)
    index = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    windows: Int = found[index]
    return windows


def _average_pool(taken: list[Any], attributes: Attributes) -> Fixed:
    x = _exact(taken[0], "AveragePool")
    dims = x.m.ndim - 2
    axes = tuple(range(-dims, 0))
    total = _windows(x.m, attributes, fill=0).sum(axis=axes)
    if any(attributes.get("pads", [])) and not attributes.get("count_include_pad", 0):
        raise NotExactError("averages over windows of unequal size are not emulated", "count the padding")
    return Fixed(total, x.e, int(np.prod(attributes["kernel_shape"])), x.s)


def _global_average(taken: list[Any], attributes: Attributes) -> Fixed:
    x = _exact(taken[0], "GlobalAveragePool")
    axes = tuple(range(2, x.m.ndim))
    return Fixed(x.m.sum(axis=axes, keepdims=True), x.e, int(np.prod(x.m.shape[2:])), x.s)


def _concat(taken: list[Any], attributes: Attributes) -> Fixed:
    sides = [one_exponent(_exact(x, "Concat")) for x in taken]
    if not all(side.shifts for side in sides):
        if not all(np.allclose(side.scale, sides[0].scale, rtol=1e-6, atol=0) for side in sides):
            raise NotExactError("branches have scales that no shift aligns", "give them one scale")
        whole = np.concatenate([side.m for side in sides], axis=int(attributes["axis"]))
        return replace(sides[0], m=whole)
    least = min(int(s.e) for s in sides)
    joined = np.concatenate(
        [shifted(s.m, np.asarray(int(s.e) - least)) for s in sides], axis=int(attributes["axis"])
    )
    return Fixed(joined, np.asarray(least, np.int64))


def _viewed(change: Callable[[Any, list[Any], Attributes], Any]) -> Operator:
    def apply(taken: list[Any], attributes: Attributes) -> Any:
        x = taken[0]
        if isinstance(x, Fixed):
            x = one_exponent(x)
            return replace(x, m=change(x.m, taken[1:], attributes))
        if isinstance(x, _Codes):
            return _Codes(change(x.values, taken[1:], attributes))
        return change(np.asarray(x), taken[1:], attributes)

    return apply


def _reshape(x: Any, more: list[Any], attributes: Attributes) -> Any:
    shape = [int(n) for n in more[0]]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _flatten(x: Any, more: list[Any], attributes: Attributes) -> Any:
    axis = int(attributes.get("axis", 1))
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _axes(more: list[Any], attributes: Attributes) -> tuple[int, ...] | None:
    """An input since opset 13, an attribute before."""
    given = more[0] if more else attributes.get("axes")
    return None if given is None else tuple(int(a) for a in given)


def _squeeze(x: Any, more: list[Any], attributes: Attributes) -> Any:
    return np.squeeze(x, _axes(more, attributes))


def _unsqueeze(x: Any, more: list[Any], attributes: Attributes) -> Any:
    return np.expand_dims(x, _axes(more, attributes) or ())


def _constant(taken: list[Any], attributes: Attributes) -> Any:
    (name, value), *_ = attributes.items()
    return numpy_helper.to_array(value) if name == "value" else np.asarray(value)


def _function(of: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> Operator:
    """A function of one quantized value, as the circuit's table holds it: exact, until the quantizer behind it."""

    def apply(taken: list[Any], attributes: Attributes) -> npt.NDArray[np.float64]:
        return of(_exact(taken[0], "a function").value())

    return apply


_OPERATORS: Final[dict[str, Operator]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _add,
    "Mul": _mul,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "Concat": _concat,
    "Reshape": _viewed(_reshape),
    "Flatten": _viewed(_flatten),
    "Squeeze": _viewed(_squeeze),
    "Unsqueeze": _viewed(_unsqueeze),
    "Transpose": _viewed(lambda x, more, a: np.transpose(x, a.get("perm"))),
    "Identity": _viewed(lambda x, more, a: x),
    "Constant": _constant,
    "Sigmoid": _function(lambda x: 1 / (1 + np.exp(-x))),
    "Tanh": _function(np.tanh),
    "HardSwish": _function(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Softplus": _function(lambda x: np.logaddexp(0, x)),
}
