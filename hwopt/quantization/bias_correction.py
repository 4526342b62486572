"""Bias correction: take out the mean error that rounding the weights puts on a layer's output.

Nagel et al., ICCV 2019, section 4.2, equations 16 and 17: ``E[y] - E[ŷ] = (W - Ŵ)·E[x]``, with the mean
of the input measured on calibration data. Padding is ignored: at the border the correction is a little
too large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hwopt.quantization.net import Array, Net, Op


def bias_shifts(net: Net, batches: Iterable[Any], quantized: Mapping[str, Array]) -> dict[str, Array]:
    """What to add to the bias of each layer: bias name to a vector over output channels.

    Args:
        net: the float network.
        quantized: weight name to the weight after a round trip through its codes.
    """
    layers = [op for op in net.ops if op.weight in quantized and op.bias and op.kind in {"Conv", "Gemm"}]
    sums: dict[tuple[str, str | None], Any] = {}
    counts: dict[tuple[str, str | None], int] = {}
    kinds: dict[str, set[str | None]] = {}
    for op in layers:
        kinds.setdefault(op.inputs[0], set()).add(op.kind)

    def see(name: str, value: Array) -> None:
        for kind in kinds[name]:
            axis = 1 if kind == "Conv" else value.ndim - 1
            rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float64)
            sums[name, kind] = sums.get((name, kind), 0.0) + rows.sum(axis=0)
            counts[name, kind] = counts.get((name, kind), 0) + len(rows)

    if layers:
        net.observe(batches, list(kinds), see)
    found: dict[str, list[Array]] = {}
    for op in layers:
        weight = net.constant(str(op.weight))
        key = (op.inputs[0], op.kind)
        if weight is None or key not in sums:
            continue
        mean = sums[key] / counts[key]
        shift = _applied(op, weight.astype(np.float64) - quantized[str(op.weight)], mean)
        found.setdefault(str(op.bias), []).append(shift)
    # A layer that is called several times has one bias: the mean of what its calls ask for.
    return {name: np.mean(shifts, axis=0).astype(np.float32) for name, shifts in found.items()}


def _applied(op: Op, error: Any, mean: Any) -> Any:
    """``error·mean`` over input channels and kernel positions; shape (output channels,)."""
    if op.kind == "Gemm":
        return error @ mean if op.axis == 0 else mean @ error
    per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)  # (outputs, inputs of a group)
    outputs, width = per_input.shape
    group = np.arange(outputs) // (outputs // op.groups)
    means = mean.reshape(op.groups, width)[group]
    return (per_input * means).sum(axis=1)
