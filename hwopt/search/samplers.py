"""Which version to try next. Optuna's samplers propose; the history decides, and nothing else.

A sampler is made anew for every proposal, from the history and a seed of its own, so that a search that was killed
goes on exactly as it would have: there is no state to lose, and none that has to be unpickled.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cmaes
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection as Direction
from optuna.trial import TrialState

from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.search import Axis, Objective, SearchSettings
from hwopt.search.job import Sample

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

_STARTUP: Final = 10  # random proposals before a model is believed
_FEW: Final = 150  # trials up to which a Gaussian process is affordable
_MANY: Final = 500  # from where on evolution pays
_CHOICES: Final = 4  # axes without order, from where on trees beat a Gaussian process
_AGAIN: Final = 24  # proposals that may repeat a known one before a random one is taken
_LOOKS: Final = 12  # of them, for one whose structure is new
_MOST: Final = 2000  # random proposals before a space counts as exhausted
COUNTABLE: Final = 100_000  # versions up to which all of a space are looked through
_STEPS: Final = 3  # decimal digits of an axis's span that are told apart, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What samplers learn from: one version and what came of it.

    Attributes:
        values: of the objectives; None where it was not trained, failed, or still runs.
        rungs: step of the training to value of what halving goes by, where it was given up on the way.
        structure: what is known of it without training depends on this alone; versions share it that differ in how
            they are trained.
        refused: it surely cannot keep the limits, and nor can another version of its structure.
    """

    sample: Sample
    structure: str | None = None
    refused: bool = False
    running: bool = False
    values: tuple[float, ...] | None = None
    excesses: Mapping[str, float] = field(default_factory=dict)
    rungs: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposer:
    """Proposes samples for one search."""

    settings: SearchSettings
    objectives: tuple[Objective, ...]
    limits: tuple[str, ...]  # names of all limits, which every trial must have for Gaussian processes

    @property
    def sampler(self) -> str:
        """The one that is used; ``auto`` decides by the space and the number of trials."""
        settings = self.settings
        if settings.sampler != "auto":
            return settings.sampler
        if settings.cells <= settings.trials:
            return "grid"
        free = sum(not is_ordered(axis) for axis in settings.space.values())
        conditional = any(axis.when for axis in settings.space.values())
        if conditional or free >= _CHOICES or settings.halving is not None:
            return "tpe"
        if settings.trials <= _FEW:
            return "gp"
        if len(self.objectives) > 1:
            return "nsga"
        return "cma" if settings.trials > _MANY and not free else "tpe"

    def propose(
        self, history: Sequence[Past], structure_of: Callable[[Sample], str | None] = lambda sample: None
    ) -> Sample | None:
        """A sample that was not tried and is not known to miss a limit; None where there is none left."""
        known = {canonical_json(dict(past.sample)) for past in history}
        seen = {past.structure for past in history if past.structure is not None}
        refused = {past.structure for past in history if past.structure is not None and past.refused}
        number = len(history)

        def is_new(sample: Sample) -> bool:
            return canonical_json(dict(sample)) not in known and structure_of(sample) not in refused

        if self.sampler == "grid":
            return next((s for s in self.cells() if is_new(s)), None)
        make = {"random": self._random, "cma": self._cma}.get(self.sampler, self._study)
        # Before a model is believed, structures that were not looked at: limits and half the objectives hang on them.
        structural = not all(is_of_training(name) for name in self.settings.space)
        looks = _LOOKS if structural and make == self._study and number < _STARTUP else 0
        for attempt in range(_AGAIN):
            sample = make(history, _seed(self.settings.seed, number, attempt))
            if is_new(sample) and (attempt >= looks or structure_of(sample) not in seen):
                return sample
        for attempt in range(_MOST):
            sample = self._random(history, _seed(self.settings.seed, number, _AGAIN + attempt))
            if is_new(sample):
                return sample
        if self.settings.cells <= COUNTABLE:
            return next((s for s in self.cells() if is_new(s)), None)
        return None

    def cells(self) -> Any:
        """Every version of a space that can be counted, each once."""
        names = self.settings.ordered()
        seen: set[str] = set()
        for values in itertools.product(*(values_of(self.settings.space[n]) for n in names)):
            sample = self._open(dict(zip(names, values, strict=True)))
            key = canonical_json(sample)
            if key not in seen:
                seen.add(key)
                yield sample

    def _open(self, values: Mapping[str, JSON]) -> dict[str, JSON]:
        found: dict[str, JSON] = {}
        for name in self.settings.ordered():
            if self.settings.is_open(name, found):
                found[name] = values[name]
        return found

    def _random(self, history: Sequence[Past], seed: int) -> dict[str, JSON]:
        return self._drawn(RandomSampler(seed=seed), [])

    def _study(self, history: Sequence[Past], seed: int) -> dict[str, JSON]:
        conditional = any(axis.when for axis in self.settings.space.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler: BaseSampler
            if self.sampler == "gp":
                sampler = GPSampler(seed=seed, n_startup_trials=_STARTUP)
            elif self.sampler == "nsga":
                sampler = NSGAIISampler(seed=seed, population_size=self.population)
            else:
                sampler = TPESampler(
                    seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=conditional
                )
            return self._drawn(sampler, history)

    @property
    def population(self) -> int:
        """Of evolution: a fifth of the trials, within reason."""
        return max(8, min(50, self.settings.trials // 5))

    def _drawn(self, sampler: BaseSampler, history: Sequence[Past]) -> dict[str, JSON]:
        """One draw of a sampler that has been told the history."""
        quiet()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directions = [Direction.MAXIMIZE if o.rises else Direction.MINIMIZE for o in self.objectives]
            study = optuna.create_study(directions=directions, sampler=sampler)
            finished = 0
            for past in history:
                study.add_trial(self._told(past, sampler, finished))
                finished += not past.running
            trial = study.ask()
            found: dict[str, JSON] = {}
            for name in self.settings.ordered():
                if self.settings.is_open(name, found):
                    found[name] = _suggested(trial, name, self.settings.space[name])
        return found

    def _told(self, past: Past, sampler: BaseSampler, finished: int) -> optuna.trial.FrozenTrial:
        """A trial as samplers see it. Without values it counts as the worst there is: they learn from nothing else."""
        worst = [-math.inf if o.rises else math.inf for o in self.objectives]
        distributions = {n: distribution_of(self.settings.space[n]) for n in past.sample}
        params = {n: encoded(self.settings.space[n], v) for n, v in past.sample.items()}
        attrs: dict[str, Any] = {}
        values: list[float] | None = worst if past.values is None else list(past.values)
        state = TrialState.COMPLETE
        if past.running:
            state, values = TrialState.RUNNING, None
        elif (
            past.rungs
            and past.values is None
            and len(self.objectives) == 1
            and isinstance(sampler, TPESampler)
        ):
            state, values = TrialState.PRUNED, None
        if isinstance(sampler, NSGAIISampler):
            attrs[sampler._get_generation_key()] = finished // self.population
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params=params,
            distributions=distributions,  # type: ignore[arg-type]
            intermediate_values=dict(past.rungs) if state is TrialState.PRUNED else None,
            constraints=None
            if past.running
            else {name: past.excesses.get(name, 0.0) for name in sorted(self.limits)},
        )
        trial.system_attrs = {**trial.system_attrs, **attrs}
        return trial

    def _cma(self, history: Sequence[Past], seed: int) -> dict[str, JSON]:
        """The next point of an evolution strategy that is led through the history again.

        Reference:
            Hansen, 2016 (the CMA evolution strategy: a tutorial), with its default population.
        """
        names = list(self.settings.space)
        bounds = np.asarray([[0.0, 1.0]] * len(names))
        optimizer = cmaes.CMA(
            mean=np.full(len(names), 0.5), sigma=0.3, bounds=bounds, seed=_seed(self.settings.seed, 0, 0)
        )
        rises = self.objectives[0].rises
        told: list[tuple[np.ndarray, float]] = []
        for past in history:
            if past.running:
                continue
            place = np.asarray([_position(self.settings.space[n], past.sample[n]) for n in names])
            beyond = sum(max(0.0, e) for e in past.excesses.values())
            value = math.inf if past.values is None else (-1 if rises else 1) * past.values[0]
            told.append((place, 1e6 * (1 + beyond) if beyond or math.isinf(value) else value))
            if len(told) == optimizer.population_size:
                optimizer.tell(told)
                told = []
        optimizer.reseed_rng(seed)
        point = optimizer.ask()
        return {n: _at(self.settings.space[n], float(x)) for n, x in zip(names, point, strict=True)}


def quiet() -> None:
    """Optuna says on stderr what our own progress says better."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _seed(seed: int, number: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{attempt}".encode()).digest()[:4], "big")


def is_of_training(name: str) -> bool:
    """Whether an axis changes how a version is trained, and nothing of its structure."""
    return name.startswith("train.")


def is_ordered(axis: Axis) -> bool:
    """Whether the values of an axis have an order that a model can use: numbers, each greater than the one before."""
    if axis.one_of is None:
        return True
    numbers = [v for v in axis.one_of if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(axis.one_of) >= 3 and all(a < b for a, b in itertools.pairwise(numbers))


def values_of(axis: Axis) -> list[JSON]:
    """All values of an axis that can be counted."""
    if axis.one_of is not None:
        return list(axis.one_of)
    low, step = axis.ends[0], axis.step or 1
    whole = axis.integers is not None or axis.log_integers is not None
    return [int(low + i * step) if whole else _rounded(axis, low + i * step) for i in range(int(axis.size))]


def distribution_of(axis: Axis) -> Distribution:
    """The axis as samplers see it: ordered choices by their place, others by their text."""
    if _by_place(axis):
        return IntDistribution(0, int(axis.size) - 1)
    if axis.one_of is not None:
        return CategoricalDistribution([canonical_json(v) for v in axis.one_of])
    low, high = axis.ends
    if axis.integers is not None or axis.log_integers is not None:
        step = int(axis.step or 1)
        top = int(low) + (int(high) - int(low)) // step * step
        return IntDistribution(int(low), top, log=axis.log_integers is not None, step=step)
    return FloatDistribution(low, high, log=axis.log is not None)


def _by_place(axis: Axis) -> bool:
    """Whether samplers see places: sums of steps are not exact, and an end may fall off."""
    return is_ordered(axis) if axis.one_of is not None else axis.range is not None and axis.step is not None


def encoded(axis: Axis, value: JSON) -> Any:
    """A value as its distribution holds it."""
    if axis.one_of is not None and is_ordered(axis):
        return axis.one_of.index(value)
    if _by_place(axis):
        number: Any = value
        return round((number - axis.ends[0]) / (axis.step or 1))
    return canonical_json(value) if axis.one_of is not None else value


def _suggested(trial: optuna.Trial, name: str, axis: Axis) -> JSON:
    shape = distribution_of(axis)
    choices: tuple[JSON, ...] = axis.one_of or ()
    if isinstance(shape, CategoricalDistribution):
        chosen = trial.suggest_categorical(name, shape.choices)
        return next(v for v in choices if canonical_json(v) == chosen)
    if isinstance(shape, IntDistribution):
        place = trial.suggest_int(name, shape.low, shape.high, step=shape.step, log=shape.log)
        return values_of(axis)[place] if _by_place(axis) else place
    return _rounded(axis, trial.suggest_float(name, shape.low, shape.high, log=shape.log))


def _rounded(axis: Axis, value: float) -> float:
    """Four digits say all that matters, and a thousandth of a narrow axis; equal versions look equal."""
    low, high = axis.ends
    if axis.step is None and high > low:
        digits = _STEPS - math.floor(math.log10(high - low))
        kept = round(value, max(digits, 3 - math.floor(math.log10(abs(value)))) if value else digits)
    else:
        kept = float(f"{value:.12g}")
    return min(max(kept, low), high)


def _position(axis: Axis, value: Any) -> float:
    """Where a value lies between the ends of its axis, 0 to 1."""
    if axis.one_of is not None:
        return float(axis.one_of.index(value)) / max(1, len(axis.one_of) - 1)
    low, high = axis.ends
    if high == low:
        return 0.5
    if axis.log is not None or axis.log_integers is not None:
        return math.log(float(value) / low) / math.log(high / low)
    return float(value - low) / (high - low)


def _at(axis: Axis, place: float) -> JSON:
    """The value at a place between the ends, 0 to 1."""
    choices: tuple[JSON, ...] = axis.one_of or ()
    if choices:
        return choices[round(place * (len(choices) - 1))]
    low, high = axis.ends
    logarithmic = axis.log is not None or axis.log_integers is not None
    value = low * (high / low) ** place if logarithmic else low + place * (high - low)
    if axis.integers is not None or axis.log_integers is not None:
        step = int(axis.step or 1)
        return int(low) + min(round((value - low) / step), (int(high) - int(low)) // step) * step
    if axis.step is not None:
        value = low + min(round((value - low) / axis.step), int(axis.size) - 1) * axis.step
    return _rounded(axis, value)
