from __future__ import annotations

import numpy as np
import pytest

from hwopt.numerics.intervals import median_interval, paired_drop_interval, wilson_interval


@pytest.mark.parametrize(("n", "confidence"), [(20, 0.95), (40, 0.9875), (80, 0.9875)])
def test_median_interval_covers(n: int, confidence: float) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = median_interval(rng.lognormal(0, 1, n), confidence)
        hits += low <= 1.0 <= high  # the median of a log-normal
    assert hits / 2000 >= confidence - 0.01  # 1 point for the 2,000 draws


def test_median_interval_of_twenty_is_the_known_one() -> None:
    # Tables of the sign test: n = 20 at 95 % gives the 6th and the 15th value.
    _, low, high = median_interval(np.arange(1.0, 21.0), 0.95)
    assert (low, high) == (6.0, 15.0)


def test_too_few_samples_know_nothing() -> None:
    _, low, high = median_interval(np.ones(5), 0.95)
    assert (low, high) == (float("-inf"), float("inf"))


def test_wilson_known_value() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson_interval(81, 263)
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


def test_paired_drop_known_value() -> None:
    # Newcombe 1998 (paired), table II, a = 36, b = 12, c = 2, d = 0: 0.2 with 0.0569 to 0.3404 (method 10).
    before = np.array([1] * 36 + [1] * 12 + [0] * 2, bool)
    after = np.array([1] * 36 + [0] * 12 + [1] * 2, bool)
    drop, low, high = paired_drop_interval(before, after)
    assert drop == pytest.approx(0.2)
    assert low == pytest.approx(0.0569, abs=2e-3)
    assert high == pytest.approx(0.3404, abs=2e-3)


def test_paired_drop_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        before = rng.random(400) < 0.95
        flip = rng.random(400) < 0.03
        after = before ^ flip
        truth = 0.03 * (0.95 - 0.05)
        _, low, high = paired_drop_interval(before, after)
        hits += low <= truth <= high
    assert hits / 1000 >= 0.93


def test_equal_predictions_still_leave_doubt() -> None:
    right = np.ones(200, bool)
    drop, low, high = paired_drop_interval(right, right)
    assert drop == 0
    assert -0.03 < low < 0 < high < 0.03


def test_thousands_of_samples_have_an_interval() -> None:
    values = np.arange(5001.0)
    median, low, high = median_interval(values, 0.95)
    assert median == 2500
    assert 2400 < low < 2450 < 2550 < high < 2600
