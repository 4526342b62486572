"""What intervals say: better, within a bound, on the front."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwopt.core.profile import Requirement
from hwopt.core.search import Objective
from hwopt.search.values import (
    Value,
    best,
    dominates,
    excess,
    front,
    hypervolume,
    mean_of,
    surely_beyond,
    surely_within,
)

ACCURACY, LATENCY = Objective(metric="accuracy"), Objective(metric="latency_ms")


def value(estimate: float, reach: float = 0.0) -> Value:
    return Value(estimate=estimate, low=estimate - reach, high=estimate + reach, tier="measured")


def entry(accuracy: float, latency: float, reach: float = 0.0) -> dict[str, Value]:
    return {"accuracy": value(accuracy, reach), "latency_ms": value(latency, reach)}


@pytest.mark.parametrize(
    ("bound", "estimate", "reach", "beyond", "within"),
    [
        ({"max": 1.0}, 0.9, 0.05, False, True),
        ({"max": 1.0}, 0.98, 0.05, False, False),
        ({"max": 1.0}, 1.04, 0.05, False, False),
        ({"max": 1.0}, 1.06, 0.05, True, False),
        ({"min": 1.0}, 1.06, 0.05, False, True),
        ({"min": 1.0}, 0.94, 0.05, True, False),
    ],
)
def test_bounds(bound: dict[str, float], estimate: float, reach: float, beyond: bool, within: bool) -> None:
    limit = Requirement.model_validate({"metric": "latency_ms", **bound})
    assert surely_beyond(limit, value(estimate, reach)) is beyond
    assert surely_within(limit, value(estimate, reach)) is within
    assert ((excess(limit, value(estimate)) or 0) > 0) == (estimate > 1 if "max" in bound else estimate < 1)
    assert (surely_beyond(limit, None), surely_within(limit, None), excess(limit, None)) == (
        False,
        False,
        None,
    )


def test_fits() -> None:
    limit = Requirement.model_validate({"metric": "fits"})
    assert surely_within(limit, value(1.0))
    assert surely_beyond(limit, value(0.0))
    assert (excess(limit, value(0.0)) or 0) > 0 > (excess(limit, value(1.0)) or 0)


def test_noise_does_not_dominate() -> None:
    both = (ACCURACY, LATENCY)
    assert dominates(entry(0.9, 1.0), entry(0.8, 2.0), both)
    assert not dominates(entry(0.9, 1.0, 0.2), entry(0.8, 1.1, 0.2), both)
    # Surely faster, and the accuracies do not differ: it dominates.
    quick, slow = entry(0.90, 1.0), entry(0.91, 2.0)
    quick["accuracy"], slow["accuracy"] = value(0.90, 0.02), value(0.91, 0.02)
    assert dominates(quick, slow, both)
    assert not dominates(slow, quick, both)


def test_the_front_and_the_best() -> None:
    found = [entry(0.9, 1.0), entry(0.95, 2.0), entry(0.85, 1.5), entry(0.95, 2.5)]
    assert front(found, (ACCURACY, LATENCY)) == [0, 1]
    assert best(found, LATENCY) == (0, [0])
    noisy = [entry(0.90, 1.0, 0.1), entry(0.95, 2.0, 0.1), entry(0.5, 2.0, 0.1)]
    assert best(noisy, ACCURACY) == (1, [0, 1])


entries = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0.1, 10), st.floats(0, 0.3)).map(lambda t: entry(*t)),
    min_size=1,
    max_size=12,
)


@given(entries)
def test_somebody_is_always_on_the_front_and_nobody_there_is_dominated(found: list[Any]) -> None:
    objectives = (ACCURACY, LATENCY)
    places = front(found, objectives)
    for i in places:
        assert not any(dominates(found[j], found[i], objectives) for j in range(len(found)))
    exact = [{k: value(v.estimate) for k, v in one.items()} for one in found]
    assert front(exact, objectives)


def test_means_of_several_trainings() -> None:
    one = mean_of([value(0.9, 0.01)])
    assert (one.low, one.high) == (pytest.approx(0.89), pytest.approx(0.91))
    three = mean_of([value(0.90), value(0.92), value(0.94)])
    # Student's t with two degrees of freedom: 4.303 · 0.02 / √3.
    assert three.high - three.estimate == pytest.approx(4.303 * 0.02 / math.sqrt(3), rel=1e-3)
    same = mean_of([value(0.9, 0.01), value(0.9, 0.01)])
    assert same.high > same.low


def test_a_value_goes_through_json_and_back() -> None:
    open_end = Value(estimate=1.0, low=-math.inf, high=math.inf, tier="predicted")
    assert Value.from_json(open_end.to_json()) == open_end  # type: ignore[arg-type]


def test_area() -> None:
    assert hypervolume([(1, 2), (2, 1)], (3, 3)) == pytest.approx(3)
    assert hypervolume([(1, 2), (2, 1), (2, 2)], (3, 3)) == pytest.approx(3)
    assert hypervolume([(4, 1)], (3, 3)) == 0
