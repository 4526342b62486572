"""Observers: what calibration keeps of the values of a tensor, and the range that it makes of them.

All stream: memory does not grow with the number of samples. To add one, write a class with ``add`` and
``range`` and name it in ``plugins.py``.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hwopt.numerics.scales import Codes, Float, Histogram, mse_range, percentile_range


class Observer(Protocol):
    """Sees batches, gives a range."""

    low: float  # least and greatest value seen
    high: float

    def add(self, x: Float) -> None:
        """See a batch of any shape; ValueError for NaN or infinity."""

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """The values that the least and the greatest code should stand for."""


def _ends(x: Float) -> tuple[float, float]:
    low, high = float(np.min(x)), float(np.max(x))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("a calibration sample gives NaN or infinity")
    return low, high


class MinMax:
    """Everything that was seen. Jacob et al., CVPR 2018, section 3.1; sensitive to a single outlier."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, x: Float) -> None:
        """See a batch."""
        if np.size(x):
            low, high = _ends(x)
            self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """Least and greatest value."""
        return self.low, self.high


class MovingAverage:
    """Exponential average of each batch's ends.

    Jacob et al., CVPR 2018, section 3.1; ``share`` is the weight of the newest batch.
    """

    def __init__(self, share: float = 0.05) -> None:
        self.low, self.high = np.inf, -np.inf
        self.share = share
        self._average: tuple[float, float] | None = None

    def add(self, x: Float) -> None:
        """See a batch."""
        if not np.size(x):
            return
        low, high = _ends(x)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._average is None:
            self._average = low, high
        else:
            a, b = self._average
            self._average = a + self.share * (low - a), b + self.share * (high - b)

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """The averaged ends."""
        return self._average if self._average is not None else (0.0, 0.0)


class _OfHistogram:
    def __init__(self) -> None:
        self.histogram = Histogram()

    @property
    def low(self) -> float:
        """Least value seen."""
        return self.histogram.low

    @property
    def high(self) -> float:
        """Greatest value seen."""
        return self.histogram.high

    def add(self, x: Float) -> None:
        """See a batch."""
        self.histogram.add(x)


class Percentile(_OfHistogram):
    """All but the outermost values. McKinstry et al., 2018, section 3.1."""

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        self.percentile = percentile

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """The values between the two tails."""
        return percentile_range(self.histogram, self.percentile)


class Mse(_OfHistogram):
    """Least squared error; see ``scales.mse_range``. Nagel et al., 2021, section 3.1."""

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """The clipping range of least error."""
        return mse_range(self.histogram, codes, symmetric=symmetric)


class Entropy(_OfHistogram):
    """Least Kullback-Leibler divergence between the values and their codes.

    Migacz, "8-bit inference with TensorRT", GTC 2017. The published search is over magnitudes, so both sides
    of a two-sided tensor are cut at the same magnitude.
    """

    def range(self, codes: Codes, *, symmetric: bool) -> tuple[float, float]:
        """The range whose coarse histogram says most of the fine one."""
        histogram = self.histogram
        low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        half = histogram.bins // 2
        fine = histogram.counts[half:] + histogram.counts[:half][::-1]  # of magnitudes
        fine[0] = fine[1]  # zeros are exact on any grid; behind a ReLU they would drown all else
        levels = codes[1] - codes[0] + 1
        levels = levels // 2 if low < 0 < high or (symmetric and codes[0] < 0) else levels
        used = int(np.flatnonzero(fine)[-1]) + 1 if fine.any() else 1
        if used <= levels:
            return low, high
        width = histogram.reach / half
        trials = np.unique(np.linspace(levels, used, 128).astype(int))
        best = min(trials, key=lambda bins: _divergence(fine[:used].astype(np.float64), int(bins), levels))
        cut = float(best) * width
        return max(low, -cut), min(high, cut)


def _divergence(fine: Float, bins: int, levels: int) -> float:
    """KL of the clipped distribution against its ``levels`` wide steps, both over the first ``bins`` bins."""
    clipped = fine[:bins].copy()
    clipped[-1] += fine[bins:].sum()
    step = np.minimum(np.arange(bins) * levels // bins, levels - 1)
    filled = fine[:bins] > 0
    sums = np.bincount(step, weights=fine[:bins], minlength=levels)
    counts = np.bincount(step, weights=filled, minlength=levels)
    spread = np.where(filled, (sums / np.maximum(counts, 1))[step], 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-300)
    seen = p > 0
    # An empty step under a filled bin says nothing of it: a small floor in place of infinity.
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))
