"""SmoothQuant: move outliers of activations behind layer norm into the weights that read them.

Xiao et al., ICML 2023, equations 3 and 4: ``Y = (X·diag(s)⁻¹)·(diag(s)·W)`` with
``s_j = max|X_j|^α / max|W_j|^(1-α)``; the division is merged into the layer norm, or stands behind it where a
residual reads the norm too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from hwopt.errors import ConfigError
from hwopt.quantization.net import Array, Net, Op, readers

_LEAST = 1e-5


def smooth(net: Net, batches: Iterable[Any], alpha: float) -> int:
    """Smooth every layer norm that linear layers read, in place; the number of layer norms.

    Args:
        batches: calibration batches; one pass, and one number a channel is kept.
        alpha: how much of the range moves to the weights, 0 to 1; the paper takes 0.5.
    """
    read_by = readers(net, inside=True)
    uses = Counter(name for op in net.ops for name in {op.weight, op.bias, *op.parameters} if name)
    chosen: dict[str, tuple[Op, list[Op]]] = {}
    for norm in (op for op in net.ops if op.kind == "LayerNormalization" and op.weight):
        users = read_by.get(norm.output, [])
        linear = [u for u in users if u.kind in {"Gemm", "MatMul"} and u.weight]
        within = Counter(u.weight for u in linear)
        # A weight that others read as well must not take the factor.
        linear = [u for u in linear if u.weight and uses[u.weight] == within[u.weight]]
        if linear:
            chosen[norm.output] = (norm, linear)
    peaks: dict[str, Array] = {}

    def see(name: str, value: Array) -> None:
        peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
        peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak

    if not chosen:
        raise ConfigError(
            "SmoothQuant finds no layer norm in front of linear layers of its own", fix="leave out smooth"
        )
    if net.observe(batches, list(chosen), see) == 0:
        raise ConfigError("SmoothQuant needs samples", fix="give samples to calibrate on")
    for name, (norm, linear) in chosen.items():
        weights = {u.weight: (net.constant(str(u.weight)), u.in_axis) for u in linear}
        reach = np.max([_peaks(w, axis) for w, axis in weights.values()], axis=0)
        s = np.maximum(peaks[name], _LEAST) ** alpha / np.maximum(reach, _LEAST) ** (1 - alpha)
        s = np.maximum(s, _LEAST)
        alone = uses[str(norm.weight)] == 1 and uses[str(norm.bias)] <= 1
        if alone and len(linear) == len(read_by[name]) and name not in net.outputs:
            for constant in (norm.weight, norm.bias):
                values = net.constant(constant) if constant else None
                if constant and values is not None:
                    net.set_constant(constant, (values / s).astype(np.float32))
        else:  # a residual reads the layer norm as well: it must not see the factor
            net.scale(name, (1 / s).astype(np.float32), [u.name for u in linear])
        for weight, (values, axis) in weights.items():
            shape = [-1 if i == axis else 1 for i in range(2)]
            net.set_constant(str(weight), (values * s.reshape(shape)).astype(np.float32))
    return len(chosen)


def _peaks(weight: Any, axis: int | None) -> Any:
    """Greatest magnitude of each input channel."""
    return np.abs(weight).max(axis=1 - int(axis or 0))
