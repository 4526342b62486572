"""Intervals that hold without assuming a distribution."""

from __future__ import annotations

from math import comb, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]


def median_interval(samples: Float, confidence: float) -> tuple[float, float, float]:
    """Median with its exact order-statistic (sign test) interval.

    Args:
        samples: independent draws, shape (n,).
        confidence: least coverage, for example 0.95.
    Returns:
        median, low, high. With too few samples for the confidence (n < 6 at 0.95) the interval is
        ``(-inf, inf)``: unknown, not narrow.
    Reference:
        David and Nagaraja, "Order Statistics", 3rd ed., section 7.1.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    if n == 0:
        return float("nan"), float("-inf"), float("inf")
    # The interval from the k-th to the (n+1-k)-th value covers with 1 - 2·P(Binomial(n, ½) < k).
    tail, k = 0.0, 0
    while k < (n + 1) // 2:
        step = comb(n, k) / (1 << n)  # of integers: exact, however large
        if 2 * (tail + step) > 1 - confidence:
            break
        tail += step
        k += 1
    median = float(np.median(ordered))
    if k == 0:
        return median, float("-inf"), float("inf")
    return median, float(ordered[k - 1]), float(ordered[n - k])


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion.

    Reference:
        Wilson, JASA 1927.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_drop_interval(
    right_before: npt.NDArray[np.bool_], right_after: npt.NDArray[np.bool_], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Drop of accuracy on the same samples, with its interval.

    Args:
        right_before, right_after: whether each sample was classified rightly, shape (n,), n ≥ 1.
    Returns:
        drop (positive when accuracy fell), low, high; as shares, not per cent.
    Reference:
        Newcombe, Statistics in Medicine 1998, 17:2635, method 10 (score interval for paired proportions).
    """
    n = len(right_before)
    a = int(np.sum(right_before & right_after))
    b = int(np.sum(right_before & ~right_after))
    c = int(np.sum(~right_before & right_after))
    d = n - a - b - c
    p1, p2 = (a + b) / n, (a + c) / n
    l1, u1 = wilson_interval(a + b, n, confidence)
    l2, u2 = wilson_interval(a + c, n, confidence)
    product = float(a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    cross_corrected = cross - n / 2 if cross > n / 2 else min(cross, 0)
    phi = cross_corrected / sqrt(product) if product > 0 else 0.0
    down = sqrt(max(0.0, (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2))
    up = sqrt(max(0.0, (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2))
    drop = p1 - p2
    return drop, max(-1.0, drop - down), min(1.0, drop + up)
