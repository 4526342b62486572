"""Cross-layer equalization: move range from one layer's channels to the next layer's, at no cost.

Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, section
4.1: for ``f`` with ``f(s·x) = s·f(x)``, ``W2·f(W1·x + b1) = (W2·S)·f(S⁻¹·W1·x + S⁻¹·b1)``; equation 11
gives the scales for which each channel has the same range on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hwopt.quantization.net import Net, Op, readers

# Positive homogeneous, so that a positive factor passes through. ReLU6 is not: it clips at a fixed value.
_ACTIVATIONS: Final = frozenset({"Relu", "LeakyRelu"})
_POOLS: Final = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
# Once a channel is one number, these keep channels apart and in order.
_ONE_POSITION: Final = frozenset({"Flatten", "Reshape", "Squeeze"})
_SWEEPS: Final = 20
_ENOUGH: Final = 1e-3  # largest change of a scale at which the sweeps stop


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with nothing between them that a factor cannot pass."""

    first: Op
    second: Op


def pairs(net: Net) -> list[Pair]:
    """Layers whose output feeds one other layer and nothing else."""
    read_by = readers(net, inside=True)
    weights = [op.weight for op in net.ops]
    found = []
    for op in net.ops:
        if op.kind not in {"Conv", "Gemm"} or op.weight is None or weights.count(op.weight) > 1:
            continue
        tensor, pooled = op.output, False
        while tensor not in net.outputs and len(users := read_by.get(tensor, [])) == 1:
            user = users[0]
            # Convolutions keep channels in axis 1, linear layers in the last: pooling works on the former.
            pooled = pooled or (op.kind == "Conv" and user.kind == "GlobalAveragePool")
            passes = user.kind in _ACTIVATIONS or (op.kind == "Conv" and user.kind in _POOLS)
            if passes or (pooled and user.kind in _ONE_POSITION):
                tensor = user.output
                continue
            same_axis = user.kind == ("Gemm" if pooled else op.kind) or (pooled and user.kind == op.kind)
            layer = user.kind in {"Conv", "Gemm"} and user.weight and weights.count(user.weight) == 1
            if layer and same_axis and _inputs(net, user) == _outputs(net, op):
                found.append(Pair(op, user))
            break
    return found


def equalize(net: Net) -> int:
    """Equalize all pairs of ``net`` in place, sweep by sweep until nothing moves; the number of pairs."""
    found = pairs(net)
    for _ in range(_SWEEPS):
        change = max((_balance(net, pair) for pair in found), default=0.0)
        if change < _ENOUGH:
            break
    return len(found)


def _outputs(net: Net, op: Op) -> int:
    values = net.constant(op.weight) if op.weight else None
    return 0 if values is None or op.axis is None else values.shape[op.axis]


def _inputs(net: Net, op: Op) -> int:
    values = net.constant(op.weight) if op.weight else None
    if values is None or op.in_axis is None:
        return -1
    if op.groups == 1:
        return int(values.shape[op.in_axis])
    depthwise = values.shape[1] == 1 and values.shape[0] == op.groups
    return op.groups if depthwise else -1  # other groupings mix channels of a block


def _ranges(values: Any, axis: int) -> Any:
    return np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(axis=1)


def _balance(net: Net, pair: Pair) -> float:
    first, second = pair.first, pair.second
    w1, w2 = net.constant(str(first.weight)), net.constant(str(second.weight))
    if w1 is None or w2 is None or first.axis is None or second.in_axis is None:
        return 0.0
    in_axis = second.in_axis if second.groups == 1 else 0
    r1, r2 = _ranges(w1, first.axis), _ranges(w2, in_axis)
    usable = (r1 > 0) & (r2 > 0)
    scale = np.where(usable, np.sqrt(np.where(usable, r1 / np.where(r2 > 0, r2, 1), 1)), 1.0)
    net.set_constant(str(first.weight), _scaled(w1, 1 / scale, first.axis))
    net.set_constant(str(second.weight), _scaled(w2, scale, in_axis))
    bias = net.constant(first.bias) if first.bias else None
    if first.bias and bias is not None:
        net.set_constant(first.bias, (bias / scale).astype(np.float32))
    return float(np.abs(scale - 1).max())


def _scaled(values: Any, factor: Any, axis: int) -> Any:
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    return (values * factor.reshape(shape)).astype(np.float32)
