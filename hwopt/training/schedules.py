"""Learning-rate schedules: pure functions from a position in the training to a factor on the base rate.

Nothing is remembered between steps, so a training that resumes has the exact rate, and a schedule can be drawn
without a network. A new one is a function, an options class and a constant, and one line in ``plugins.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from hwopt.core.choices import NoOptions
from hwopt.core.settings import Settings

Factor = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a training stands before a step."""

    step: int  # from 0
    steps: int  # of the whole training
    per_epoch: int  # steps of an epoch
    warmup: int = 0  # steps at the start that warm up
    losses: tuple[float, ...] = ()  # validation losses so far, one an epoch

    @property
    def epoch(self) -> int:
        """From 0; warm-up counts."""
        return self.step // self.per_epoch

    @property
    def epochs(self) -> int:
        """All of them, the last perhaps cut short."""
        return -(-self.steps // self.per_epoch)

    @property
    def t(self) -> float:
        """Share of what follows the warm-up: 0 at its first step, 1 at the last step of all."""
        return min(1.0, max(0, self.step - self.warmup) / max(1, self.steps - 1 - self.warmup))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """A schedule by name; ``factor(position, options)`` is the factor on the base rate."""

    factor: Callable[[Position, Any], float]
    options: type[Settings] = NoOptions
    starts_low: bool = False  # it brings a warm-up of its own, and takes no other
    needs_validation: bool = False


def constant(at: Position, options: NoOptions) -> float:
    """1 throughout."""
    return 1.0


def linear(at: Position, options: NoOptions) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - at.t


def cosine(at: Position, options: NoOptions) -> float:
    """From 1 to 0 along half a cosine.

    Reference:
        Loshchilov and Hutter, ICLR 2017 (SGDR), equation 5 without restarts.
    """
    return 0.5 * (1 + cos(pi * at.t))


class RestartOptions(Settings):
    """Of cosine_restarts."""

    cycles: Annotated[int, Field(ge=1, le=100)] = 3
    longer: Annotated[float, Field(ge=1, le=10)] = 2.0  # each cycle than the one before


def cosine_restarts(at: Position, options: RestartOptions) -> float:
    """Half a cosine again and again, each ``longer`` times as long: Loshchilov and Hutter, equation 5."""
    lengths = [options.longer**i for i in range(options.cycles)]
    place = at.t * sum(lengths)
    for index, length in enumerate(lengths):
        if place < length or index == len(lengths) - 1:
            return 0.5 * (1 + cos(pi * min(1.0, place / length)))
        place -= length
    raise AssertionError("unreachable: there is at least one cycle")


class OneCycleOptions(Settings):
    """Of one_cycle; defaults as in torch's OneCycleLR."""

    rise: Factor = 0.3  # share of the steps
    start: Factor = 1 / 25
    end: Annotated[float, Field(ge=0, lt=1)] = 1e-4 / 25


def one_cycle(at: Position, options: OneCycleOptions) -> float:
    """Up from ``start`` to 1, down to ``end``, both along a cosine: Smith and Topin, 2018."""
    if at.t < options.rise:
        return options.start + (1 - options.start) * 0.5 * (1 - cos(pi * at.t / options.rise))
    fall = (at.t - options.rise) / (1 - options.rise)
    return options.end + (1 - options.end) * 0.5 * (1 + cos(pi * fall))


class CyclicOptions(Settings):
    """Of cyclic."""

    cycles: Annotated[int, Field(ge=1, le=1000)] = 4
    low: Factor = 0.1
    shrink: Annotated[float, Field(gt=0, le=1)] = 1.0  # the height of each cycle against the one before


def cyclic(at: Position, options: CyclicOptions) -> float:
    """Triangles between ``low`` and 1: Smith, WACV 2017, section 3.1; ``shrink`` 0.5 is its triangular2."""
    place = min(at.t * options.cycles, options.cycles * (1 - 1e-12))
    height = 1 - abs(2 * (place % 1) - 1)
    return options.low + (1 - options.low) * height * options.shrink ** int(place)


class StepOptions(Settings):
    """Of step."""

    every: Annotated[int, Field(ge=1)] | None = None  # epochs; None: a third of the training
    gamma: Factor = 0.1


def step(at: Position, options: StepOptions) -> float:
    """Times ``gamma`` every so many epochs."""
    every = options.every or max(1, -(-at.epochs // 3))
    return float(options.gamma ** (at.epoch // every))


class MultiStepOptions(Settings):
    """Of multi_step."""

    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()  # epochs; none: one half and three quarters
    gamma: Factor = 0.1


def multi_step(at: Position, options: MultiStepOptions) -> float:
    """Times ``gamma`` at every milestone; the default is that of He et al., CVPR 2016, section 4.2."""
    if options.milestones:
        passed = sum(at.epoch >= m for m in options.milestones)
    else:
        passed = sum(at.step >= share * at.steps for share in (0.5, 0.75))
    return float(options.gamma**passed)


class ExponentialOptions(Settings):
    """Of exponential."""

    gamma: Factor = 0.9
    per: Literal["epoch", "step"] = "epoch"
    steps: Annotated[int, Field(ge=1)] | None = None  # per step: gamma once in so many; None: an epoch's


def exponential(at: Position, options: ExponentialOptions) -> float:
    """Times ``gamma`` after every epoch, or smoothly: gamma^(step / steps)."""
    if options.per == "epoch":
        return float(options.gamma**at.epoch)
    return float(options.gamma ** (at.step / (options.steps or at.per_epoch)))


class PolynomialOptions(Settings):
    """Of polynomial."""

    power: Annotated[float, Field(gt=0, le=10)] = 2.0


def polynomial(at: Position, options: PolynomialOptions) -> float:
    """(1 - t)^power."""
    return float((1.0 - at.t) ** options.power)


class WsdOptions(Settings):
    """Of wsd."""

    decay: Annotated[float, Field(gt=0, le=1)] = 0.2  # share of the steps


def wsd(at: Position, options: WsdOptions) -> float:
    """Warm up (with ``warmup``), stay, fall in a straight line: Hu et al., 2024 (MiniCPM), section 4.2."""
    return min(1.0, (1.0 - at.t) / options.decay)


def rex(at: Position, options: NoOptions) -> float:
    """(1 - t) / (1 - t/2): slow at first, fast at the end.

    Reference:
        Chen et al., MLSys 2022 (REX), section 3.
    """
    return (1 - at.t) / (1 - at.t / 2)


class PlateauOptions(Settings):
    """Of plateau."""

    gamma: Factor = 0.5
    patience: Annotated[int, Field(ge=0)] = 2  # epochs without improvement before the rate falls
    threshold: Annotated[float, Field(ge=0, lt=1)] = 1e-4  # relative improvement that counts


def plateau(at: Position, options: PlateauOptions) -> float:
    """Times ``gamma`` whenever the validation loss has not improved for ``patience`` + 1 epochs."""
    best, waited, drops = float("inf"), 0, 0
    for loss in at.losses:
        if loss < best * (1 - options.threshold) or best == float("inf"):
            best, waited = loss, 0
            continue
        waited += 1
        if waited > options.patience:
            drops, waited = drops + 1, 0
    return float(options.gamma**drops)


def warm_up(index: int, steps: int) -> float:
    """Linear warm-up factor of step ``index`` (from 0): non-zero at once, 1 from step ``steps - 1`` on.

    Reference:
        Goyal et al., 2017, section 2.2 (gradual warm-up).
    """
    return min(1.0, (index + 1) / steps) if steps > 0 else 1.0


CONSTANT: Final = ScheduleSpec(factor=constant)
LINEAR: Final = ScheduleSpec(factor=linear)
COSINE: Final = ScheduleSpec(factor=cosine)
COSINE_RESTARTS: Final = ScheduleSpec(factor=cosine_restarts, options=RestartOptions)
ONE_CYCLE: Final = ScheduleSpec(factor=one_cycle, options=OneCycleOptions, starts_low=True)
CYCLIC: Final = ScheduleSpec(factor=cyclic, options=CyclicOptions, starts_low=True)
STEP: Final = ScheduleSpec(factor=step, options=StepOptions)
MULTI_STEP: Final = ScheduleSpec(factor=multi_step, options=MultiStepOptions)
EXPONENTIAL: Final = ScheduleSpec(factor=exponential, options=ExponentialOptions)
POLYNOMIAL: Final = ScheduleSpec(factor=polynomial, options=PolynomialOptions)
WSD: Final = ScheduleSpec(factor=wsd, options=WsdOptions)
REX: Final = ScheduleSpec(factor=rex)
PLATEAU: Final = ScheduleSpec(factor=plateau, options=PlateauOptions, needs_validation=True)
