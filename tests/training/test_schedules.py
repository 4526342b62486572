from __future__ import annotations

from math import cos, pi
from typing import Any

import pytest
import torch

from hwopt.plugins import resolve, table
from hwopt.training.choices import ScheduleSettings
from hwopt.training.schedules import Position, ScheduleSpec, warm_up

STEPS, PER_EPOCH = 120, 10


def factors(name: str, losses: tuple[float, ...] = (), warmup: int = 0, **options: Any) -> list[float]:
    spec: ScheduleSpec = resolve("schedule", name)
    checked = ScheduleSettings.model_validate({"name": name, **options}).checked
    return [
        spec.factor(
            Position(
                step=k, steps=STEPS, per_epoch=PER_EPOCH, warmup=warmup, losses=losses[: k // PER_EPOCH]
            ),
            checked,
        )
        for k in range(STEPS)
    ]


def test_the_list_is_complete() -> None:
    assert set(table("schedule")) == {
        "constant", "linear", "cosine", "cosine_restarts", "one_cycle", "cyclic", "step", "multi_step",
        "exponential", "polynomial", "wsd", "rex", "plateau",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(table("schedule")))
def test_every_schedule_stays_in_range(name: str) -> None:
    values = factors(name)
    assert all(0 <= v <= 1 + 1e-12 for v in values)
    assert max(values) == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_restarts", "polynomial", "wsd", "rex"])
def test_annealing_ends_at_zero(name: str) -> None:
    assert factors(name)[-1] == pytest.approx(0.0, abs=1e-12)


def torchs(make: Any, per_epoch: bool = False) -> list[float]:
    """The rates of a scheduler of torch's, one a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for k in range(STEPS):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if not per_epoch or (k + 1) % PER_EPOCH == 0:
            scheduler.step()
    return values


S = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (factors("step", every=3, gamma=0.5), torchs(lambda o: S.StepLR(o, 3, 0.5), True)),
        (
            factors("multi_step", milestones=[2, 7], gamma=0.3),
            torchs(lambda o: S.MultiStepLR(o, [2, 7], 0.3), True),
        ),
        (factors("exponential", gamma=0.8), torchs(lambda o: S.ExponentialLR(o, 0.8), True)),
        (factors("cosine"), torchs(lambda o: S.CosineAnnealingLR(o, STEPS - 1))),
        (factors("linear"), torchs(lambda o: S.LinearLR(o, 1.0, 0.0, STEPS - 1))),
        (factors("polynomial", power=3.0), torchs(lambda o: S.PolynomialLR(o, STEPS - 1, 3.0))),
    ],
    ids=["step", "multi_step", "exponential", "cosine", "linear", "polynomial"],
)
def test_ref_parity_with_torch(mine: list[float], theirs: list[float]) -> None:
    assert mine == pytest.approx(theirs, abs=1e-9)


def test_formulas() -> None:
    t = [k / (STEPS - 1) for k in range(STEPS)]
    assert factors("rex") == pytest.approx([(1 - x) / (1 - x / 2) for x in t])
    assert factors("wsd", decay=0.25) == pytest.approx([min(1, (1 - x) / 0.25) for x in t])
    smooth = factors("exponential", per="step", gamma=0.5, steps=40)
    assert smooth == pytest.approx([0.5 ** (k / 40) for k in range(STEPS)])
    one = factors("one_cycle")
    assert one[0] == pytest.approx(1 / 25)
    assert max(one) == pytest.approx(1.0, abs=1e-3)
    assert one[-1] == pytest.approx(1e-4 / 25)
    restarts = factors("cosine_restarts", cycles=2, longer=1.0)
    assert restarts[60] == pytest.approx(1.0, abs=1e-3)
    assert restarts[30] == pytest.approx(0.5 * (1 + cos(pi * 60 / 119)), abs=1e-9)
    triangles = factors("cyclic", cycles=2, low=0.2)
    assert triangles[0] == pytest.approx(0.2)
    assert max(triangles) == pytest.approx(1.0, abs=0.02)


def test_plateau_halves_after_patience_and_one() -> None:
    """A flat metric: the rate falls after patience + 1 evaluations that bring nothing."""
    values = factors("plateau", losses=(1.0,) * 12, patience=2, gamma=0.5)
    by_epoch = values[::PER_EPOCH]
    assert by_epoch == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    falling = factors("plateau", losses=tuple(1 / (k + 1) for k in range(12)), patience=0)
    assert set(falling) == {1.0}


def test_warm_up_is_linear_and_starts_at_once() -> None:
    assert [warm_up(k, 4) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0


def test_what_follows_a_warm_up_starts_at_its_end() -> None:
    at = Position(step=20, steps=120, per_epoch=10, warmup=20)
    assert at.t == 0.0
    assert Position(step=119, steps=120, per_epoch=10, warmup=20).t == 1.0
    assert ScheduleSettings(warmup=0.05, name="cosine").warmup_steps(400) == 20
    assert ScheduleSettings(warmup=7, name="cosine").warmup_steps(400) == 7


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "step", "evry": 3}, "did you mean 'every'"),
        ({"name": "one_cycle", "warmup": 0.1}, "rises from a low rate by itself"),
        ({"name": "polynomial", "power": -1}, "power is -1"),
    ],
)
def test_bad_schedules(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        ScheduleSettings.model_validate(given)
    details = caught.value.errors()[0]  # type: ignore[attr-defined]
    assert text in details["msg"] + str(details["ctx"].get("fix"))
