"""The comparison engine against calls whose true ratio is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwopt.measuring import pairs


def spin(units: int) -> Callable[[], None]:
    """Work of a known amount: sums over an array, repeated."""
    data = np.arange(2000, dtype=np.float64)

    def call() -> None:
        for _ in range(units):
            data.sum()

    return call


def test_equal_sides_are_not_told_apart() -> None:
    wrong = 0
    same = spin(40)  # one array: where two lie in memory can make one of them faster indeed
    for seed in range(6):
        result = pairs.compare([same], [same], seed=seed, half_width=0.02, budget_seconds=2.0)
        interval = result.interval()
        wrong += interval.low > 1.03 or interval.high < 0.97
    assert wrong == 0


def test_a_known_ratio_is_found() -> None:
    result = pairs.compare([spin(60)], [spin(30)], seed=0, half_width=0.02, budget_seconds=4.0)
    interval = result.interval()
    # The loop around the work costs a little on both sides, so the ratio is just below 2.
    assert 1.8 < interval.estimate < 2.1
    assert interval.low <= interval.estimate <= interval.high


def test_both_orders_are_drawn_and_the_seed_repeats_them() -> None:
    runs = [
        pairs.compare([spin(20)], [spin(20)], seed=7, half_width=1e-9, budget_seconds=0.3) for _ in range(2)
    ]
    n = min(len(r.first) for r in runs)
    assert runs[0].first[:n] == runs[1].first[:n]
    assert 0.2 < runs[0].first.count("baseline") / len(runs[0].first) < 0.8


def test_interval_needs_enough_pairs() -> None:
    few = pairs.Comparison(ratios=[2.0] * 5, clean=[True] * 5, first=["baseline"] * 5)
    assert few.interval().low == float("-inf")


def test_disturbed_pairs_are_dropped_by_a_rule_that_does_not_see_the_ratio() -> None:
    comparison = pairs.Comparison(
        ratios=[1.0] * 30 + [9.0] * 10, clean=[True] * 30 + [False] * 10, first=["baseline"] * 40
    )
    assert comparison.interval().high == 1.0
    assert not comparison.degraded
    mostly = pairs.Comparison(
        ratios=[1.0] * 7 + [9.0] * 33, clean=[True] * 7 + [False] * 33, first=["baseline"] * 40
    )
    assert mostly.degraded
    assert mostly.interval().high == 9.0  # then all pairs count, and the record says so


def test_a_sleeping_block_is_not_clean() -> None:
    assert not pairs.block(lambda: time.sleep(0.002), 2).clean


def test_warm_up_waits_for_the_steady_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is slow for its first 300 calls: the warm-up outlasts them."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    def timed(function: Any, n: int) -> pairs.Block:
        for _ in range(n):
            function()
        return pairs.Block(seconds=1e-3 * (1 + 2 * max(0, 300 - calls) / 300), clean=True)

    monkeypatch.setattr(pairs, "_timed", timed)
    assert pairs.warm_up(call, 1)
    assert calls >= 300


def test_percentiles_say_how_many_samples_they_have() -> None:
    found = pairs.percentiles(spin(1))
    assert found["count"] == pairs.PERCENTILE_SAMPLES
    assert found["p50"] <= found["p90"] <= found["p99"]  # type: ignore[operator]
    slow = pairs.percentiles(lambda: time.sleep(0.01))
    assert slow["p99"] is None  # fewer than 459 samples certify no 99th percentile
