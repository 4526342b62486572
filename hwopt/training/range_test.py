"""The learning-rate range test, on copies: nothing of it stays in the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, TypeVar

import torch
from torch import nn

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.errors import StageFailedError
from hwopt.training import distributed
from hwopt.training.batches import Split
from hwopt.training.choices import ScheduleSettings
from hwopt.training.loop import fit
from hwopt.training.settings import FitSettings

_DECADES: Final = (-1.5, 1.5)  # around the optimizer's own rate
_RATES: Final = 9
F = TypeVar("F", bound=FitSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeTest:
    """What a few steps at each rate came to."""

    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]  # for each seed, at each rate; infinite where it diverged
    suggested: float | None  # None: no clear answer
    low: float  # the suggestions of single seeds reach from here
    high: float  # to here

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "rates": list(self.rates),
            "losses": [[finite_or_none(v) for v in row] for row in self.losses],
            "suggested": self.suggested,
            "low": self.low,
            "high": self.high,
        }


def range_test(
    module: nn.Module,
    data: Split,
    settings: FitSettings,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 30,
    progress: Progress = silent,
) -> RangeTest:
    """Train a copy for a few steps at each of nine rates and take the one that gets furthest.

    Smith's test (WACV 2017, section 3.3) lets one run climb through all rates, and is misled by what the early
    rates did to the weights; short runs from the same start are not. Each run has the schedule's shape in small, with
    its warm-up; what goes by epochs or by validation losses is constant for so few steps.

    Returns:
        the median over the seeds, with the range; no suggestion where the seeds differ by over a decade.
    """
    base = settings.optimizer.spec.default_lr
    span = [_DECADES[0] + (_DECADES[1] - _DECADES[0]) * i / (_RATES - 1) for i in range(_RATES)]
    rates = [base * 10**d for d in span]
    table: list[tuple[float, ...]] = []
    for seed in seeds:
        row = [_loss_at(rate, module, data, settings, seed, steps) for rate in rates]
        table.append(tuple(row))
        progress(f"range test: seed {seed}, best rate {rates[row.index(min(row))]:.2g}")
    best = [_suggested(rates, row) for row in table]
    found = [rate for rate in best if rate is not None]
    clear = len(found) == len(best) and max(found) <= 10 * min(found)
    return RangeTest(
        rates=tuple(rates),
        losses=tuple(table),
        suggested=median(found) if clear else None,
        low=min(found, default=math.nan),
        high=max(found, default=math.nan),
    )


def _suggested(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate of the least loss; None where every rate failed or none made a difference."""
    finite = [v for v in losses if math.isfinite(v)]
    if not finite or (max(finite) - min(finite) < 0.01 * abs(max(finite)) and len(finite) == len(losses)):
        return None
    return rates[losses.index(min(losses))]


def _scaled(settings: FitSettings, samples: int, steps: int) -> ScheduleSettings:
    """The schedule with its warm-up as the share that it has of the whole training."""
    schedule = settings.schedule
    if schedule.spec.needs_validation:
        return ScheduleSettings(name="constant")
    if not isinstance(schedule.warmup, int) or not schedule.warmup:
        return schedule
    size = samples if settings.batch_size == "full" else settings.batch_size
    total = settings.epochs * max(1, samples // size)
    share = min(0.5, schedule.warmup / min(total, settings.max_steps or total))
    return schedule.model_copy(update={"warmup": max(1, round(share * steps))})


def _loss_at(
    rate: float, module: nn.Module, data: Split, settings: FitSettings, seed: int, steps: int
) -> float:
    """Loss in evaluation mode on up to 1,024 training samples after ``steps`` at a rate."""
    plain_schedule = _scaled(settings, len(data.x), steps)
    given = settings.model_copy(
        update={
            "optimizer": settings.optimizer.model_copy(update={"lr": rate}),
            "max_steps": steps,
            "epochs": 100_000,
            "early_stopping": None,
            "validation_share": 0.0,
            "average": None,
            "halvings": 0,
            "watch": False,
            "schedule": plain_schedule,
        }
    )  # fmt: skip
    trial = copy.deepcopy(module)
    plain = Split(x=data.x, y=data.y, x_validation=data.x[:0], y_validation=data.y[:0])
    state = torch.get_rng_state()
    try:
        fit(trial, plain, given, seed=seed, progress=silent, label="range test")
    except StageFailedError:
        return math.inf
    finally:
        torch.set_rng_state(state)
    n = min(len(data.x), 1024)
    trial.eval()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(trial(data.x[-n:]), data.y[-n:]))
    return loss if math.isfinite(loss) else math.inf


def resolved(
    module: nn.Module, data: Split, settings: F, *, seed: int, progress: Progress
) -> tuple[F, RangeTest | None]:
    """``settings`` with ``lr: auto`` replaced by what the test finds.

    Raises:
        StageFailedError: the test gives no clear answer.
    """
    if settings.optimizer.lr != "auto":
        return settings, None
    found = range_test(module, data, settings, seeds=(seed, seed + 1, seed + 2), progress=progress)
    if found.suggested is None:
        raise StageFailedError(
            "lr: auto found no clear answer: the best rates of three seeds reach from "
            f"{found.low:.2g} to {found.high:.2g}",
            fix="set train.optimizer.lr; `hwopt train probe` shows the whole table",
        )
    rate = distributed.agreed(found.suggested)
    progress(f"lr: auto is {rate:.3g} (seeds: {found.low:.2g} to {found.high:.2g})")
    optimizer = settings.optimizer.model_copy(update={"lr": rate})
    return settings.model_copy(update={"optimizer": optimizer}), found
