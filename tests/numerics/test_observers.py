from __future__ import annotations

import sys

import numpy as np
import pytest

from hwopt.errors import ConfigError
from hwopt.numerics import scales
from hwopt.numerics.observers import Entropy, MinMax, MovingAverage, Mse, Percentile
from hwopt.plugins import resolve, table
from hwopt.quantization.settings import ObserverSettings

U8 = (0, 255)
ALL = [MinMax, MovingAverage, Percentile, Mse, Entropy]


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(20_000).astype(np.float32)


def noise(observer: object, x: np.ndarray) -> float:
    low, high = observer.range(U8, symmetric=False)  # type: ignore[attr-defined]
    scale, zero = scales.affine_scale(low, high, U8)
    return float(np.mean((x - scales.fake_quantize(x, scale, zero, U8)) ** 2))


def test_ranges_of_known_values() -> None:
    x = np.arange(-100, 301, dtype=np.float32)
    seen = {}
    for kind in ALL:
        observer = kind()
        observer.add(x)
        seen[kind] = observer.range(U8, symmetric=False)
        assert (observer.low, observer.high) == (-100, 300)
    assert seen[MinMax] == seen[MovingAverage] == (-100.0, 300.0)
    tail = Percentile(percentile=90.0)
    tail.add(x)
    low, high = tail.range(U8, symmetric=False)
    assert low == pytest.approx(-80, abs=1)  # 5 % of 401 values on each side
    assert high == pytest.approx(280, abs=1)


def test_moving_average_weighs_the_newest_batch_by_its_share() -> None:
    observer = MovingAverage(share=0.25)
    for top in (4.0, 8.0):
        observer.add(np.asarray([0.0, top]))
    assert observer.range(U8, symmetric=False) == (0.0, 5.0)  # 4 + 0.25 (8 - 4)


def test_outliers_move_min_max_and_hardly_the_others() -> None:
    x = values()
    x[0] = 60.0
    errors = {}
    for kind in (MinMax, Percentile, Mse, Entropy):
        observer = kind()
        observer.add(x)
        errors[kind] = noise(observer, x[1:])
    assert errors[Percentile] < errors[MinMax] / 20
    assert errors[Entropy] < errors[MinMax] / 20
    whole = {kind: kind() for kind in (MinMax, Mse)}
    for observer in whole.values():
        observer.add(x)
    assert noise(whole[Mse], x) <= noise(whole[MinMax], x) * 1.001


def test_zeros_behind_a_relu_do_not_drown_entropy() -> None:
    x = np.maximum(values(), 0)
    x[: len(x) * 4 // 5] = 0.0
    observer = Entropy()
    observer.add(x)
    low, high = observer.range(U8, symmetric=False)
    assert low == 0.0
    assert high > 1.0  # the values reach to about 4


@pytest.mark.parametrize("kind", ALL)
def test_memory_does_not_grow_with_the_samples(kind: type) -> None:
    observer = kind()
    observer.add(values())

    def size() -> int:
        parts = [observer, *vars(observer).values(), *vars(getattr(observer, "histogram", observer)).values()]
        return sum(sys.getsizeof(part) for part in parts)

    before = size()
    for seed in range(20):
        observer.add(values(seed) * (1 + seed))
    assert size() <= before + 256


@pytest.mark.parametrize("kind", ALL)
def test_nan_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="NaN"):
        kind().add(np.asarray([1.0, np.nan]))


def test_settings_name_observers_and_know_their_options() -> None:
    assert ObserverSettings.model_validate("percentile").name == "percentile"
    assert ObserverSettings(name="percentile", percentile=99.0).options == {"percentile": 99.0}
    for wrong in ({"name": "perzentile"}, {"name": "mse", "percentile": 99.0}):
        with pytest.raises(ValueError, match=r"unknown observer|takes no option"):
            ObserverSettings.model_validate(wrong)
    assert set(table("observer")) == {"mse", "min_max", "moving_average", "percentile", "entropy"}
    with pytest.raises(ConfigError, match="unknown observer"):
        resolve("observer", "nope")
