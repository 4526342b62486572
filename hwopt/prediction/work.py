"""A model as a list of kernels with what each of them does; read from the file, whatever the device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import onnx

from hwopt.layer_table import Layer, LayerKind, layers_of

FLOAT: Final = "fp32"
INTEGER: Final = "int8"
CONVERT: Final = "convert"  # between float and integer
_LANES: Final = 16  # output channels are computed in groups of so many
_NAMES: Final = {LayerKind.GLOBAL_POOL: "pool", LayerKind.OTHER: "other"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel after fusion."""

    name: str
    kind: str  # conv, pointwise, depthwise, dense, add, pool, other, convert
    dtype: str  # of its inputs
    macs: int
    bytes: int  # read and written, weights included
    gather: int = 0  # bytes that a convolution copies together for its product

    def features(self) -> dict[str, float]:
        """What its time is a sum over, by the names of ``Calibration.costs``."""
        return {"macs": self.macs, "bytes": self.bytes, "gather": self.gather, "each": 1.0}

    @property
    def key(self) -> str:
        """Its table in ``Calibration.costs``."""
        return f"{self.kind}.{self.dtype}"


def kernels(model: onnx.ModelProto, batch: int = 1) -> list[Kernel]:
    """The kernels that a runtime with the usual fusions runs: activations, batch norm and Q/DQ cost nothing.

    Raises:
        StageFailedError: a shape is not known.
    """
    layers = layers_of(copy.deepcopy(model))
    found = [_kernel(layer, batch) for layer in layers]
    return found + _conversions(layers, batch)


def _kernel(layer: Layer, batch: int) -> Kernel:
    integer = max(layer.activation_bits, layer.weight_bits if layer.weights else 0) <= 8
    size = 1 if integer else 4
    moved = batch * (prod(layer.in_shape) * max(len(layer.inputs), 1) + prod(layer.out_shape)) * size
    kind, gather = _NAMES.get(layer.kind, layer.kind.value), 0
    macs = batch * layer.macs
    if layer.kind is LayerKind.CONV:
        padded = -(-layer.rows // _LANES) * _LANES
        macs = macs // layer.rows * padded
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
