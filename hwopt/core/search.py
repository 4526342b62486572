"""What a profile may say about searching; and one sample of a search space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.canonical import JSON
from hwopt.core.settings import Settings

Finite = Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | int | Finite | str
Sampler = Literal["auto", "grid", "random", "tpe", "gp", "cma", "nsga"]
Objectives = Literal[
    "accuracy",
    "accuracy_drop",
    "f1",
    "agreement",
    "validation_accuracy",
    "latency_ms",
    "relative_latency",
    "speedup",
    "file_bytes",
    "activation_bytes",
    "parameters",
    "macs",
]
CANDIDATE: Final = "candidate"  # the axis that chooses among the profile's candidates
# Known of a network before it is trained; the rest needs its weights.
STRUCTURAL: Final = frozenset(
    {
        "latency_ms",
        "relative_latency",
        "speedup",
        "file_bytes",
        "activation_bytes",
        "parameters",
        "macs",
        "fits",
    }
)
RISING: Final = frozenset({"accuracy", "f1", "agreement", "validation_accuracy", "speedup"})  # more is better


def problem(kind: str, text: str, fix: str) -> PydanticCustomError:
    """An error with its fix."""
    return PydanticCustomError(kind, "{text}", {"text": text, "fix": fix})


def _same(one: Any, other: Any) -> bool:
    """Equal as values of a profile: 0 is 0.0, and true is no 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class Axis(Settings):
    """The values that one key of the profile may take; exactly one of the kinds."""

    one_of: tuple[Any, ...] | None = None
    range: tuple[Finite, Finite] | None = None
    log: tuple[Finite, Finite] | None = None  # a range whose logarithm is even
    integers: tuple[int, int] | None = None
    log_integers: tuple[int, int] | None = None
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of range and integers
    when: Mapping[str, Any] = Field(default_factory=dict)  # other axis: value, or list of values

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [
            n for n in ("one_of", "range", "log", "integers", "log_integers") if getattr(self, n) is not None
        ]
        if len(kinds) != 1:
            said = f", and has {', '.join(kinds)}" if kinds else ""
            raise problem(
                "axis",
                f"an axis needs exactly one of one_of, range, log, integers and log_integers{said}",
                "for example {log: [1e-4, 1e-1]}",
            )
        if self.one_of is not None:
            if not self.one_of:
                raise problem("axis", "one_of is empty: there is nothing to choose from", "list the values")
            if any(_same(a, b) for i, a in enumerate(self.one_of) for b in self.one_of[:i]):
                raise problem("axis", "one_of has a value twice", "list each value once")
        else:
            low, high = self.ends
            if low > high:
                raise problem("axis", f"the range [{low:g}, {high:g}] is empty", f"write [{high:g}, {low:g}]")
            if low <= 0 and kinds[0].startswith("log"):
                raise problem("axis", f"{kinds[0]} begins at {low:g}, and has no logarithm", "begin above 0")
        if self.step is not None:
            if kinds[0] not in {"range", "integers"}:
                raise problem("axis", f"step does not serve {kinds[0]}", "remove step")
            if self.integers is not None and self.step != int(self.step):
                raise problem("axis", f"a step of {self.step:g} leaves the integers", "give a whole step")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Least and greatest value of an axis of numbers."""
        found = self.range or self.log or self.integers or self.log_integers
        if found is None:
            raise ValueError("an axis of choices has no ends")
        return found

    @property
    def size(self) -> float:
        """How many values it has; infinity for a continuous one."""
        if self.one_of is not None:
            return len(self.one_of)
        low, high = self.ends
        if low == high:
            return 1
        if (self.range is not None and self.step is None) or self.log is not None:
            return math.inf
        return math.floor((high - low) / (self.step or 1) + 1e-9) + 1

    def holds(self, value: JSON) -> bool:
        """Whether it may take a value."""
        if self.one_of is not None:
            return any(_same(value, v) for v in self.one_of)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.ends
        whole = self.integers is not None or self.log_integers is not None
        on = self.step is None or abs((value - low) / self.step - round((value - low) / self.step)) < 1e-9
        return low <= value <= high and on and (not whole or value == int(value))


class Objective(Settings):
    """One number to make as good as can be."""

    metric: Objectives
    goal: Literal["max", "min"] | None = None  # left out, what is good for the metric

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return self.metric in RISING if self.goal is None else self.goal == "max"


class Halving(Settings):
    """Train a little first; go on only with those that are among the best so far.

    Reference:
        Li et al., MLSys 2020 (ASHA), algorithm 2; the kind that stops and does not promote later.
    """

    first: Annotated[float, Field(gt=0, lt=1)] = 0.25  # share of the steps of the first rung
    factor: Annotated[float, Field(ge=2, le=10)] = 4.0  # of a rung's steps; one in so many goes on
    on: Literal["accuracy", "validation_accuracy", "f1"] | None = (
        None  # None: the objective that is one of these
    )

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the whole training, the last of which is 1."""
        found = [self.first]
        while found[-1] * self.factor < 0.999:
            found.append(found[-1] * self.factor)
        return (*found, 1.0)


class Validation(Settings):
    """What a version is judged on while searching; never the test split."""

    folds: Annotated[int, Field(ge=2, le=20)] = 5  # parts of the training split; one is held out
    used: Annotated[int, Field(ge=1, le=20)] = (
        1  # folds that each version is trained for; all is cross-validation
    )
    seeds: Annotated[int, Field(ge=1, le=20)] = 1  # trainings of each version, with different seeds

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.used > self.folds:
            raise problem("folds", f"{self.used} of {self.folds} folds cannot be used", "lower used")
        return self


class Stop(Settings):
    """When to end before the trials are over."""

    patience: Annotated[int, Field(ge=1)] = 20  # trials in a row that did not make it better
    gain: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # what counts as better, share of the best


class SearchSettings(Settings):
    """The profile's section ``search``."""

    space: Mapping[str, Axis]
    objectives: tuple[
        Objective, ...
    ] = ()  # none: the fastest that keeps the requirements, or the most accurate
    sampler: Sampler = "auto"
    trials: Annotated[int, Field(ge=1, le=100_000)] = 30  # in all, after a resume too
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    target: str | None = None  # None: the first target
    candidate: str | None = None  # None: the first that is not the float model
    validation: Validation = Validation()
    halving: Halving | None = None
    stop: Stop | None = None
    restarts: Annotated[int, Field(ge=1, le=20)] = 1  # trainings of the winner, with different seeds

    @model_validator(mode="after")
    def _space_holds_together(self) -> Self:
        if not self.space:
            raise problem(
                "space",
                "the space is empty: there is nothing to search",
                "name keys of the profile, for example train.optimizer.lr: {log: [1e-4, 1e-1]}",
            )
        if all(axis.size == 1 for axis in self.space.values()):
            raise problem("space", "the space holds one version: there is nothing to search", "widen an axis")
        for name, axis in self.space.items():
            for parent, wanted in axis.when.items():
                if parent not in self.space:
                    raise problem(
                        "when",
                        f"{name} depends on {parent!r}, which is no axis of the space",
                        f"axes: {', '.join(self.space)}",
                    )
                values = wanted if isinstance(wanted, list) else [wanted]
                if not any(self.space[parent].holds(v) for v in values):
                    raise problem(
                        "when", f"{name} waits for {parent} to be {wanted!r}, which it never is", "mend when"
                    )
        self.ordered()
        metrics = [o.metric for o in self.objectives]
        if len(set(metrics)) < len(metrics):
            raise problem("objectives", "an objective stands twice", "name each metric once")
        if self.sampler == "cma" and (
            len(self.objectives) > 1 or any(a.one_of is not None or a.when for a in self.space.values())
        ):
            raise problem(
                "sampler",
                "cma searches numbers for one objective: no one_of, no when, no second objective",
                "use sampler: tpe",
            )
        if self.sampler == "grid" and math.isinf(self.cells):
            endless = next(n for n, a in self.space.items() if math.isinf(a.size))
            raise problem(
                "sampler", f"a grid has no end: {endless} is continuous", "give it a step, or one_of"
            )
        if self.sampler == "nsga" and len(self.objectives) == 1:
            raise problem(
                "sampler", "nsga serves several objectives", "use sampler: tpe, or add an objective"
            )
        return self

    @property
    def cells(self) -> float:
        """Number of versions in the space, conditions aside; infinity for a continuous one."""
        return math.prod(axis.size for axis in self.space.values())

    def ordered(self) -> list[str]:
        """Names of the axes, each after those that it depends on.

        Raises:
            PydanticCustomError: axes wait for each other.
        """
        found: list[str] = []
        waiting = list(self.space)
        while waiting:
            ready = [n for n in waiting if all(p in found for p in self.space[n].when)]
            if not ready:
                raise problem("when", f"{' and '.join(waiting)} wait for each other", "break the circle")
            found += ready
            waiting = [n for n in waiting if n not in ready]
        return found

    def is_open(self, name: str, sample: Mapping[str, JSON]) -> bool:
        """Whether an axis has a value, given those of the axes that it depends on."""
        for parent, wanted in self.space[name].when.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if parent not in sample or sample[parent] not in values:
                return False
        return True


class Holdout(Settings):
    """Part of the training split that takes the place of the test split, which is then not read at all."""

    fold: Annotated[int, Field(ge=0)]
    folds: Annotated[int, Field(ge=2)]
    seed: int = 0
