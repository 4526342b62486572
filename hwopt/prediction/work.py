"""A model as a list of kernels with what each of them does; read from the file, whatever the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import onnx

from hwopt.errors import ConfigError
from hwopt.layer_table import Layer, LayerKind, layers_of

FLOAT: Final = "fp32"
INTEGER: Final = "int8"
OTHER: Final = "other"
CONVERT: Final = "convert"  # between float and integer
_LANES: Final = 16  # output channels are computed in groups of so many
_NAMES: Final = {
    LayerKind.GLOBAL_POOL: "pool",
    LayerKind.MULTIPLY: "add",
    LayerKind.ACTIVATION: OTHER,
    LayerKind.UPSAMPLE: OTHER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel after fusion."""

    name: str
    kind: str  # conv, pointwise, depthwise, dense, add, pool, other, convert
    dtype: str  # of its inputs
    macs: int
    bytes: int  # read and written, weights included
    gather: int = 0  # bytes that a convolution copies together for its product
    op: str = ""  # ONNX type

    def features(self) -> dict[str, float]:
        """What its time is a sum over, by the names of ``Calibration.costs``."""
        return {"macs": self.macs, "bytes": self.bytes, "gather": self.gather, "each": 1.0}

    @property
    def key(self) -> str:
        """Its table in ``Calibration.costs``."""
        return f"{self.kind}.{self.dtype}"


def kernels(model: onnx.ModelProto, batch: int = 1) -> list[Kernel]:
    """The kernels that a runtime with the usual fusions runs: activations, batch norm and Q/DQ cost nothing.

    Args:
        batch: of a model whose first axis is free; one that is fixed must be this.
    Raises:
        StageFailedError: a shape is not known.
        ConfigError: the model always takes another batch, or computes in other types than float32 and int8.
    """
    _check(model, batch)
    layers = layers_of(copy.deepcopy(model))
    # Concatenation is a choice of where its inputs are written.
    found = [_kernel(layer, batch) for layer in layers if layer.kind is not LayerKind.CONCAT]
    return found + _conversions(layers, batch)


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    stored = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in stored and len(dims) > 1 and dims[0].HasField("dim_value"):
            return int(dims[0].dim_value)
    return None


def _check(model: onnx.ModelProto, batch: int) -> None:
    fixed = _fixed_batch(model)
    if fixed is not None and fixed != batch:
        raise ConfigError(f"the model always takes {fixed} samples", fix=f"predict with --batch {fixed}")
    halves = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    if any(i.data_type in halves for i in model.graph.initializer):
        raise ConfigError(
            "the model computes in 16-bit floats, whose times are not predicted yet",
            fix="measure it on the device, or predict its float32 version",
        )


def unpriced(found: Sequence[Kernel]) -> list[str]:
    """Operators whose work is not known, so that only their traffic counts."""
    return sorted({kernel.op for kernel in found if kernel.kind == OTHER})


def _kernel(layer: Layer, batch: int) -> Kernel:
    integer = max(layer.activation_bits, layer.weight_bits if layer.weights else 0) <= 8
    size = 1 if integer else 4
    moved = batch * (prod(layer.in_shape) * max(len(layer.inputs), 1) + prod(layer.out_shape)) * size
    kind, gather = _NAMES.get(layer.kind, layer.kind.value), 0
    macs = batch * layer.macs
    if layer.kind is LayerKind.CONV:
        padded = -(-layer.rows // _LANES) * _LANES
        macs = macs // max(layer.rows, 1) * padded
        area = prod(layer.kernel)
        if area == 1:
            kind = "pointwise"
        else:
            gather = batch * layer.pixels * area * layer.in_shape[0] * size
    return Kernel(
        name=layer.name,
        kind=kind,
        dtype=INTEGER if integer else FLOAT,
        macs=macs,
        bytes=moved + layer.weights * size,
        gather=gather,
        op=layer.op,
    )


def _conversions(layers: Sequence[Layer], batch: int) -> list[Kernel]:
    """Where a tensor passes from float to integer or back, the network's input and output included."""
    integer = {layer.name: layer.activation_bits <= 8 for layer in layers}
    read = {name for layer in layers for name in layer.inputs}
    found = []
    for layer in layers:
        for source in layer.inputs or ("",):
            if integer.get(source, False) != integer[layer.name]:
                found.append(_conversion(layer.name, batch * prod(layer.in_shape)))
        if layer.name not in read and integer[layer.name]:
            found.append(_conversion(layer.name, batch * prod(layer.out_shape)))
    return found


def _conversion(name: str, values: int) -> Kernel:
    return Kernel(name=f"{name}, converted", kind=CONVERT, dtype=INTEGER, macs=0, bytes=5 * values)


def totals(found: Sequence[Kernel]) -> Mapping[str, Mapping[str, float]]:
    """Sums of features by kind and type: all that a linear model needs to know of a network."""
    sums: dict[str, dict[str, float]] = {}
    for kernel in found:
        mine = sums.setdefault(kernel.key, {})
        for name, value in kernel.features().items():
            mine[name] = mine.get(name, 0.0) + value
    return sums
