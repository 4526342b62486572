from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwopt.numerics import scales


def test_symmetric_scale_puts_the_peak_on_the_top_code() -> None:
    scale = scales.symmetric_scale(np.array([6.3, 1.0]), (-64, 63))
    np.testing.assert_allclose(scale, [0.1, 1 / 63])


def test_affine_scale_holds_zero_exactly() -> None:
    scale, zero = scales.affine_scale(-1.0, 3.0, (0, 255))
    assert scale == pytest.approx(4 / 255)
    assert zero == 64
    assert scales.affine_scale(2.0, 4.0, (0, 255)) == (pytest.approx(4 / 255), 0)


def test_rounding_is_half_to_even() -> None:
    codes = scales.quantize(np.array([0.5, 1.5, 2.5, -0.5]), 1.0, 0, (-8, 7))
    assert codes.tolist() == [0, 2, 2, 0]


@given(st.floats(-30, 30))
def test_power_of_two(exponent: float) -> None:
    snapped = float(scales.power_of_two(np.asarray(2.0**exponent)))
    assert np.log2(snapped) == np.rint(exponent) or abs(exponent % 1 - 0.5) < 1e-9


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.integers(2, 8))
def test_fake_quantize_errs_by_half_a_step(values: list[float], bits: int) -> None:
    x = np.asarray(values)
    codes = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    scale = float(scales.symmetric_scale(np.abs(x).max(), codes))
    error = np.abs(x - scales.fake_quantize(x, scale, 0, codes))
    assert error.max() <= scale / 2 * (1 + 1e-9)


def test_mse_scale_beats_the_peak_on_outliers() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(1, 4096))
    w[0, 0] = 20.0
    codes = (-8, 7)
    best = scales.mse_symmetric_scale(w, codes, pow2=False)
    full = scales.symmetric_scale(np.abs(w).max(axis=1), codes)

    def error(scale: np.ndarray) -> float:
        return float(np.mean((w - scales.fake_quantize(w, scale[:, None], 0, codes)) ** 2))

    assert error(best) < 0.6 * error(full)
    pow2 = scales.mse_symmetric_scale(w, codes, pow2=True)
    assert np.log2(pow2) == np.rint(np.log2(pow2))


def test_histogram_is_the_same_in_any_batching() -> None:
    x = np.random.default_rng(1).normal(size=10_000) * 3
    whole, parts = scales.Histogram(256), scales.Histogram(256)
    whole.add(x)
    for part in np.array_split(np.sort(np.abs(x)) * np.sign(x), 50):
        parts.add(part)
    assert whole.counts.sum() == parts.counts.sum() == 10_000
    assert (whole.low, whole.high) != (0, 0)
    assert parts.counts.nbytes == 256 * 8  # memory does not grow with the samples


def test_histogram_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        scales.Histogram().add(np.array([1.0, np.nan]))


def test_mse_range_clips_an_outlier_and_keeps_a_uniform_tensor() -> None:
    tail, flat = scales.Histogram(), scales.Histogram()
    rng = np.random.default_rng(2)
    tail.add(np.append(np.abs(rng.normal(size=100_000)), 40.0))
    flat.add(rng.uniform(0, 1, 100_000))
    assert scales.mse_range(tail, (0, 15), symmetric=False)[1] < 10
    low, high = scales.mse_range(flat, (0, 255), symmetric=False)
    assert low == 0
    assert high == pytest.approx(1.0, abs=0.02)


def test_percentile_range() -> None:
    h = scales.Histogram()
    h.add(np.linspace(-1, 1, 100_001))
    low, high = scales.percentile_range(h, 90.0)
    assert low == pytest.approx(-0.9, abs=0.01)
    assert high == pytest.approx(0.9, abs=0.01)


def test_sqnr() -> None:
    x = np.ones(100)
    assert scales.sqnr_db(x, x * 1.1) == pytest.approx(20.0, abs=1e-6)
    assert scales.sqnr_db(x, x) == float("inf")
