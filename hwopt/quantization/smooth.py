"""SmoothQuant: move outliers of activations behind layer norm into the weights that read them.

Xiao et al., ICML 2023, equations 3 and 4: ``Y = (X·diag(s)⁻¹)·(diag(s)·W)`` with
``s_j = max|X_j|^α / max|W_j|^(1-α)``; the division is merged into the layer norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hwopt.quantization.net import Array, Net, Op, readers

_LEAST = 1e-5


def smooth(net: Net, batches: Iterable[Any], alpha: float) -> int:
    """Smooth every layer norm that is read by linear layers only, in place; the number of layer norms.

    Args:
        batches: calibration batches; one pass, and one number a channel is kept.
        alpha: how much of the range moves to the weights, 0 to 1; the paper takes 0.5.
    """
    read_by = readers(net)
    norms = [op for op in net.ops if op.kind == "LayerNormalization" and op.weight]
    chosen: dict[str, tuple[Op, list[Op]]] = {}
    for norm in norms:
        users = read_by.get(norm.output, [])
        linear = all(u.kind in {"Gemm", "MatMul"} and u.weight and u.inputs[0] == norm.output for u in users)
        if users and linear and norm.output not in net.outputs:
            chosen[norm.output] = (norm, users)
    peaks: dict[str, Array] = {}

    def see(name: str, value: Array) -> None:
        peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
        peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak

    if chosen:
        net.observe(batches, list(chosen), see)
    for name, (norm, users) in chosen.items():
        weights = {u.weight: (net.constant(str(u.weight)), u.in_axis) for u in users}
        reach = np.max([_peaks(w, axis) for w, axis in weights.values()], axis=0)
        s = np.maximum(peaks[name], _LEAST) ** alpha / np.maximum(reach, _LEAST) ** (1 - alpha)
        s = np.maximum(s, _LEAST)
        for constant in (norm.weight, norm.bias):
            values = net.constant(constant) if constant else None
            if constant and values is not None:
                net.set_constant(constant, (values / s).astype(np.float32))
        for weight, (values, axis) in weights.items():
            shape = [-1 if i == axis else 1 for i in range(2)]
            net.set_constant(str(weight), (values * s.reshape(shape)).astype(np.float32))
    return len(chosen)


def _peaks(weight: Any, axis: int | None) -> Any:
    """Greatest magnitude of each input channel."""
    return np.abs(weight).max(axis=1 - int(axis or 0))
