"""Percentiles and their bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hwopt.measuring.percentiles import LEAST, certified, percentiles, sample


def test_fewest_samples_that_bound_a_percentile() -> None:
    """0.99^459 < 0.01 and 0.9^44 < 0.01: one sample less bounds nothing."""
    values = [float(i) for i in range(459)]
    assert certified(values, 0.99) == 458.0
    assert certified(values[:-1], 0.99) is None
    assert certified(values[:44], 0.90) == 43.0
    assert certified(values[:43], 0.90) is None


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.99])
def test_bounds_hold_as_often_as_they_say(percentile: float) -> None:
    rng = np.random.default_rng(0)
    below = sum((certified(list(rng.random(1000)), percentile) or 1.0) < percentile for _ in range(400))
    assert below <= 11  # 99.9 % of Binomial(400, 0.01)


def test_what_is_not_known_is_null() -> None:
    few = percentiles([[1e-3] * 100])
    assert (few["p99"], few["p99_bound"], few["count"]) == (None, None, 100)
    assert few["p90_bound"] == 1e-3
    many = percentiles([list(np.linspace(1.0, 2.0, 1000))])
    assert many["p50"] <= many["p90"] <= many["p99"] <= many["p99_bound"]  # type: ignore[operator]


def test_sampling_ends_by_count_by_time_and_never_below_the_least() -> None:
    assert len(sample(lambda: None, samples=50)) == 50
    assert len(sample(lambda: time.sleep(0.002), seconds=0.0)) == LEAST
    start = time.perf_counter()
    sample(lambda: None, samples=LEAST, gap=0.005)
    assert time.perf_counter() - start >= LEAST * 0.005


def test_sessions_that_differ_widen_the_interval_of_the_median() -> None:
    rng = np.random.default_rng(0)
    alike = [list(1 + 0.01 * rng.standard_normal(200)) for _ in range(6)]
    apart = [[value * factor for value in alike[0]] for factor in (0.97, 0.98, 0.99, 1.01, 1.02, 1.03)]
    narrow, wide = percentiles(alike), percentiles(apart)
    assert float(wide["high"] or 0) - float(wide["low"] or 0) > 0.03
    assert float(narrow["high"] or 0) - float(narrow["low"] or 0) < 0.01
