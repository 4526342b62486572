"""Scales, zero points, and the error of quantizing with them.

All grids are affine: ``x ≈ (q - zero_point) · scale`` with integer codes ``low ≤ q ≤ high``, rounding half
to even as ONNX QuantizeLinear does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]
Codes = tuple[int, int]

_LEAST_SCALE = 2.0**-100  # keeps constant tensors from dividing by zero; far above float32's underflow


def symmetric_scale(peak: Float, codes: Codes) -> Float:
    """Scale that puts ``±peak`` on the nearer end of ``codes``, zero point 0.

    Args:
        peak: greatest magnitude, per tensor or per channel, any shape.
        codes: least and greatest code; unsigned codes mean that values are not negative.
    Returns:
        scales of the shape of ``peak``, never zero.
    Reference:
        Jacob et al., CVPR 2018, section 2.1, with the zero point fixed at 0.
    """
    low, high = codes
    reach = high if low >= 0 else min(-low, high)
    return np.maximum(np.asarray(peak, np.float64) / max(reach, 1), _LEAST_SCALE)


def affine_scale(low_value: float, high_value: float, codes: Codes) -> tuple[float, int]:
    """Scale and zero point of a range, widened so that 0 is exact.

    Reference:
        Jacob et al., CVPR 2018, equation 1 and section 3.
    """
    low, high = codes
    low_value, high_value = min(low_value, 0.0), max(high_value, 0.0)
    scale = max((high_value - low_value) / (high - low), _LEAST_SCALE)
    zero_point = int(np.clip(np.rint(low - low_value / scale), low, high))
    return scale, zero_point


def power_of_two(scale: Float) -> Float:
    """The nearest power of two in the logarithm, as a shifter can apply it.

    Reference:
        Jain et al., MLSys 2020 (TQT), section 3.1, with the nearest power in place of the next.
    """
    return np.exp2(np.rint(np.log2(np.asarray(scale, np.float64))))


def quantize(x: Float, scale: Float | float, zero_point: int, codes: Codes) -> npt.NDArray[np.int64]:
    """Integer codes of ``x``; ``scale`` broadcasts against it."""
    low, high = codes
    codes_of_x: npt.NDArray[np.int64] = np.clip(np.rint(x / scale) + zero_point, low, high).astype(np.int64)
    return codes_of_x


def fake_quantize(x: Float, scale: Float | float, zero_point: int, codes: Codes) -> Float:
    """``x`` after a round trip through its codes."""
    return (quantize(x, scale, zero_point, codes) - zero_point) * scale


def sqnr_db(reference: Float, approximation: Float) -> float:
    """Signal to quantization noise ratio in dB; infinite for equal arrays, computed in float64."""
    signal = np.asarray(reference, np.float64)
    noise = signal - np.asarray(approximation, np.float64)
    power, error = float(np.mean(signal**2)), float(np.mean(noise**2))
    if error == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(max(power, np.finfo(np.float64).tiny) / error))


def mse_symmetric_scale(w: Float, codes: Codes, *, pow2: bool, steps: int = 40, least: float = 0.3) -> Float:
    """Per row of ``w``, the symmetric scale of least squared error.

    Tries ``steps`` shares of the row's peak from 1 down to ``least``; with ``pow2`` the four powers of two
    around the peak.

    Args:
        w: shape (rows, elements); one row a channel, or a single row for a tensor.
    Returns:
        shape (rows,), float64, never zero.
    Reference:
        Banner et al., NeurIPS 2019, section 3 (clipping for least MSE), by search instead of a fitted law.
    """
    w = np.asarray(w, np.float64)
    full = symmetric_scale(np.abs(w).max(axis=1), codes)
    if pow2:
        top = np.exp2(np.ceil(np.log2(full)))
        trials = [top * 2.0**-k for k in range(4)]
    else:
        trials = [full * share for share in np.linspace(1.0, least, steps)]
    best = trials[0]
    best_error = np.full(len(w), np.inf)
    for scale in trials:
        error = np.mean((w - fake_quantize(w, scale[:, None], 0, codes)) ** 2, axis=1)
        better = error < best_error
        best = np.where(better, scale, best)
        best_error = np.where(better, error, best_error)
    return best


class Histogram:
    """Streaming histogram of bounded memory, for calibration.

    The range doubles by merging neighbouring bins when a batch leaves it, so that no second pass over the
    samples is needed. Non-finite values are an error of the caller; they are refused, not dropped.
    """

    def __init__(self, bins: int = 4096) -> None:
        self.bins = bins
        self.counts = np.zeros(bins, np.int64)
        self.reach = 0.0  # the bins span [-reach, reach)
        self.low = np.inf
        self.high = -np.inf

    def add(self, x: Float) -> None:
        """Count a batch of any shape."""
        x = np.asarray(x, np.float64).ravel()
        if x.size == 0:
            return
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a calibration sample gives NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        peak = max(-low, high, _LEAST_SCALE)
        if self.reach == 0.0:
            self.reach = peak * (1 + 1e-9)
        while peak > self.reach:
            self._double()
        index = ((x + self.reach) * (self.bins / (2 * self.reach))).astype(np.int64)
        self.counts += np.bincount(np.clip(index, 0, self.bins - 1), minlength=self.bins)

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        quarter = self.bins // 4
        self.counts = np.concatenate([np.zeros(quarter, np.int64), merged, np.zeros(quarter, np.int64)])
        self.reach *= 2

    @property
    def centers(self) -> Float:
        """Middle of each bin, clipped to the values that were seen."""
        width = 2 * self.reach / self.bins
        centers: Float = np.clip((np.arange(self.bins) + 0.5) * width - self.reach, self.low, self.high)
        return centers


def percentile_range(histogram: Histogram, percentile: float = 99.99) -> tuple[float, float]:
    """The range that leaves out ``100 - percentile`` per cent of the values, half of it on each side.

    Reference:
        McKinstry et al., 2018, section 3.1.
    """
    share = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1)
    tail = (1 - percentile / 100) / 2
    low = histogram.centers[int(np.searchsorted(share, tail))]
    high = histogram.centers[min(int(np.searchsorted(share, 1 - tail)), histogram.bins - 1)]
    return float(low), float(high)


def mse_range(
    histogram: Histogram, codes: Codes, *, symmetric: bool, steps: int = 100, least: float = 0.2
) -> tuple[float, float]:
    """The clipping range of least squared error over the histogram.

    A one-sided tensor (after ReLU) shrinks its only side; a two-sided one shrinks both, each by its own
    share, in alternation.

    Reference:
        Nagel et al., "A white paper on neural network quantization", 2021, section 3.1 (MSE range setting).
    """
    seen = histogram.counts > 0
    values, weights = histogram.centers[seen], histogram.counts[seen].astype(np.float64)

    def error(low: float, high: float) -> float:
        if symmetric:
            scale, zero = float(symmetric_scale(np.asarray(max(-low, high)), codes)), 0
        else:
            scale, zero = affine_scale(low, high, codes)
        return float(np.sum(weights * (values - fake_quantize(values, scale, zero, codes)) ** 2))

    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shares = np.linspace(1.0, least, steps)
    if symmetric:
        peak = max(-low, high)
        share = min(shares, key=lambda s: error(-peak * s, peak * s))
        return -peak * float(share), peak * float(share)
    best_low, best_high = low, high
    for _ in range(2):
        if high > 0:
            best_high = high * float(min(shares, key=lambda s: error(best_low, high * s)))
        if low < 0:
            best_low = low * float(min(shares, key=lambda s: error(low * s, best_high)))
    return best_low, best_high
