from __future__ import annotations

from math import cos, pi

import pytest

from hwopt.plugins import resolve, table
from hwopt.training.schedules import cosine, one_cycle, step, warm_up


@pytest.mark.parametrize("name", sorted(table("schedule")))
def test_every_schedule_stays_in_range(name: str) -> None:
    schedule = resolve("schedule", name)
    values = [schedule(k / 100) for k in range(101)]
    assert all(0 <= v <= 1 for v in values)
    assert max(values) == pytest.approx(1.0, abs=1e-3)


def test_formulas() -> None:
    assert cosine(0.25) == pytest.approx(0.5 * (1 + cos(pi / 4)), abs=1e-12)
    assert one_cycle(0.0) == pytest.approx(1 / 25)
    assert one_cycle(0.3) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(1e-4 / 25)
    assert [step(t) for t in (0.0, 0.49, 0.5, 0.74, 0.75)] == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_warm_up_is_linear_and_starts_at_once() -> None:
    assert [warm_up(k, 4) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0
