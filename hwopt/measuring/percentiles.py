"""Percentiles of single calls that say how sure they are.

Reference:
    the bound is that of MLPerf LoadGen's early stopping (Reddi et al., ISCA 2020, section III-D): the least
    order statistic that lies above the percentile with 99 % confidence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import exp, lgamma, log
from typing import Final

import numpy as np

from hwopt.measuring.block import Call
from hwopt.measuring.comparison import student
from hwopt.numerics.intervals import median_interval

CONFIDENCE: Final = 0.99
SAMPLES: Final = 1000
SECONDS: Final = 1.0
LEAST: Final = 20


def certified(samples: Sequence[float], percentile: float, confidence: float = CONFIDENCE) -> float | None:
    """An upper bound of a percentile (0…1) that holds with ``confidence``; None from too few samples.

    The j-th of n ordered samples lies above the percentile p with probability P(Binomial(n, p) < j); 459
    samples are the fewest that bound the 99th with 99 % (0.99^459 < 0.01).
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n, below = len(ordered), 0.0
    for j in range(1, n + 1):
        below += _binomial(n, j - 1, percentile)
        if below >= confidence:
            return float(ordered[j - 1])
    return None


def _binomial(n: int, k: int, p: float) -> float:
    return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log(1 - p))


def sample(
    call: Call, *, samples: int = SAMPLES, seconds: float = SECONDS, gap: float = 0.0, least: int = LEAST
) -> list[float]:
    """Seconds of single calls, one after the other, with a pause of ``gap`` seconds before each.

    At least ``least``, then until there are ``samples`` or ``seconds`` have gone by.
    """
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < samples and (time.perf_counter() < end or len(times) < least):
        if gap:
            time.sleep(gap)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def percentiles(sessions: Sequence[Sequence[float]]) -> dict[str, float | int | None]:
    """p50 with its interval, p90 and p99, and the count, of the calls of one or more sessions.

    ``p90_bound`` and ``p99_bound`` are what is certified, for calls that are independent of each other; p99 is
    null below 459 samples, where nothing is. The interval of p50 holds what sessions differ by.
    """
    times = [value for session in sessions for value in session]
    p50, p90, p99 = np.percentile(np.asarray(times), [50, 90, 99])
    _, low, high = median_interval(np.asarray(times), 0.95)
    if len(sessions) > 1:
        medians = [float(np.median(session)) for session in sessions if session]
        half = student(len(medians) - 1) * float(np.std(medians, ddof=1)) / len(medians) ** 0.5
        low, high = min(low, float(p50) - half), max(high, float(p50) + half)
    bound = certified(times, 0.99)
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99) if bound is not None else None,
        "low": low,
        "high": high,
        "p90_bound": certified(times, 0.90),
        "p99_bound": bound,
        "count": len(times),
    }
