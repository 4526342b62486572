"""From what was seen to scales and zero points: one way for torch graphs and ONNX files."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from hwopt.core.hardware import TensorScheme
from hwopt.numerics import scales
from hwopt.numerics.observers import Mse, Observer
from hwopt.plugins import resolve
from hwopt.quantization.settings import ObserverSettings

_MARGIN = 1 - 1e-6  # below a ceiling, so that rounding in the runtime does not reach beyond it


def new_observer(settings: ObserverSettings) -> Observer:
    """The observer that the settings name."""
    made: Observer = resolve("observer", settings.name)(**settings.options)
    return made


def activation_grid(
    observer: Observer, scheme: TensorScheme, *, pow2: bool, ceiling: float | None = None
) -> tuple[float, int]:
    """Scale and zero point of a tensor.

    Args:
        ceiling: greatest value that the tensor can hold; float scales stay below it, so that a runtime may
            drop the clipping operator in front.
    """
    codes = scheme.codes
    if observer.low == observer.high == 0.0:
        return 1.0, 0  # nothing but zeros, as behind a dead ReLU: any grid holds them, this one any bias
    low, high = observer.range(codes, symmetric=scheme.symmetric)
    if scheme.symmetric:
        scale, zero = float(scales.symmetric_scale(np.asarray(max(-low, high)), codes)), 0
    else:
        scale, zero = scales.affine_scale(low, high, codes)
    if pow2:
        return _power_of_two(observer, scale, zero, codes), zero
    if ceiling is not None:
        scale = min(scale, ceiling / (codes[1] - codes[0]) * _MARGIN)
    return scale, zero


def _power_of_two(observer: Observer, scale: float, zero: int, codes: scales.Codes) -> float:
    top = float(2.0 ** np.ceil(np.log2(scale)))
    if not isinstance(observer, Mse):
        return top  # the range that was asked for, and nothing cut off
    histogram = observer.histogram
    seen = histogram.counts > 0
    values, counts = histogram.centers[seen], histogram.counts[seen]

    def error(s: float) -> float:
        return float(np.sum(counts * (values - scales.fake_quantize(values, s, zero, codes)) ** 2))

    return min((top, top / 2, top / 4), key=error)


def rows_of(weight: Any, axis: int | None, in_axis: int | None, block: int | None) -> Any:
    """A weight as rows that share a scale each: shape (groups of equal scale, elements)."""
    w = np.asarray(weight, np.float64)
    if axis is None:
        return w.reshape(1, -1)
    if block is None or in_axis is None:
        return np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    moved = np.moveaxis(w, (axis, in_axis), (0, 1))
    return moved.reshape(-1, block)


def weight_scale(
    weight: Any,
    scheme: TensorScheme,
    axis: int | None,
    in_axis: int | None,
    *,
    pow2: bool,
    reach: Literal["mse", "max"] = "mse",
) -> Any:
    """Scales of least squared error, or that reach the greatest weight; one a row of ``rows_of``."""
    rows = rows_of(weight, axis, in_axis, scheme.block)
    if reach == "mse":
        fitted = scales.mse_symmetric_scale(rows, scheme.codes, pow2=pow2)
    else:
        fitted = scales.symmetric_scale(np.abs(rows).max(axis=1), scheme.codes)
        fitted = np.exp2(np.ceil(np.log2(fitted))) if pow2 else fitted
    return np.where(np.abs(rows).max(axis=1) == 0, 1.0, fitted)  # any grid holds zeros
