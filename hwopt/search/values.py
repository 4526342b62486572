"""Numbers of one version with their intervals, and what they say: better, within a bound, on the front. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.profile import Requirement
from hwopt.core.search import Objective

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the normal's.
_T95: Final = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
)
_EQUAL: Final = 1e-12  # bounds nearer to zero are not divided by


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One metric: the estimate, a 95 % interval (equal ends where it is exact), and how it was obtained."""

    estimate: float
    low: float
    high: float
    tier: str

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON; an end that is not known is null."""
        low, high = finite_or_none(self.low), finite_or_none(self.high)
        return {"estimate": finite_or_none(self.estimate), "low": low, "high": high, "tier": self.tier}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Value:
        """The inverse of ``to_json``."""
        low = -math.inf if value["low"] is None else float(value["low"])
        high = math.inf if value["high"] is None else float(value["high"])
        return cls(estimate=float(value["estimate"]), low=low, high=high, tier=str(value["tier"]))


Values = Mapping[str, Value]


def mean_of(values: Sequence[Value], folds: int = 1) -> Value:
    """Of several trainings: the mean with Student's interval; of one, its own interval.

    Never narrower than what the samples allow: trainings that are judged on the same fold agree about its luck.
    """
    if len(values) == 1:
        return values[0]
    mean = fmean(v.estimate for v in values)
    tier = values[0].tier
    spread = stdev(v.estimate for v in values)
    reach = (
        (_T95[len(values) - 2] if len(values) <= len(_T95) + 1 else 1.96) * spread / math.sqrt(len(values))
    )
    below = max(reach, fmean(v.estimate - v.low for v in values) / math.sqrt(folds))
    above = max(reach, fmean(v.high - v.estimate for v in values) / math.sqrt(folds))
    return Value(estimate=mean, low=mean - below, high=mean + above, tier=tier)


def merged(runs: Sequence[Values], folds: int = 1) -> dict[str, Value]:
    """Metric by metric over several trainings of one version, on so many different folds."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: mean_of([run[name] for run in runs], folds) for name in names}


def excess(requirement: Requirement, value: Value | None) -> float | None:
    """How far a number is beyond its bound, as a share of it; negative within. None where it is not known."""
    if value is None:
        return None
    if requirement.metric == "fits":
        return 0.5 - value.estimate
    if requirement.max is not None:
        gap, bound = value.estimate - requirement.max, requirement.max
    else:
        bound = requirement.min if requirement.min is not None else 0.0
        gap = bound - value.estimate
    return gap / (abs(bound) if abs(bound) > _EQUAL else 1.0)


def surely_beyond(requirement: Requirement, value: Value | None) -> bool:
    """Whether the whole interval misses the bound."""
    if value is None:
        return False
    if requirement.metric == "fits":
        return value.high < 0.5
    if requirement.max is not None:
        return value.low > requirement.max
    return requirement.min is not None and value.high < requirement.min


def surely_within(requirement: Requirement, value: Value | None) -> bool:
    """Whether the whole interval keeps the bound."""
    if value is None:
        return False
    if requirement.metric == "fits":
        return value.low > 0.5
    if requirement.max is not None:
        return value.high <= requirement.max
    return requirement.min is not None and value.low >= requirement.min


def surely_better(one: Values, other: Values, objective: Objective) -> bool:
    """Whether the intervals are apart, the right way round; an unknown number is never better."""
    mine, theirs = one.get(objective.metric), other.get(objective.metric)
    if mine is None or theirs is None:
        return False
    return mine.low > theirs.high if objective.rises else mine.high < theirs.low


def dominates(one: Values, other: Values, objectives: Sequence[Objective]) -> bool:
    """Surely better in something, surely worse in nothing."""
    better = any(surely_better(one, other, o) for o in objectives)
    return better and not any(surely_better(other, one, o) for o in objectives)


def is_ahead(one: Values, other: Values, objectives: Sequence[Objective]) -> bool:
    """Better in something and worse in nothing by the estimates alone."""
    gains = []
    for objective in objectives:
        mine, theirs = one.get(objective.metric), other.get(objective.metric)
        if mine is None or theirs is None:
            return False
        gains.append((mine.estimate - theirs.estimate) * (1 if objective.rises else -1))
    return min(gains) >= 0 and max(gains) > 0


def front(entries: Sequence[Values], objectives: Sequence[Objective]) -> list[int]:
    """Places of those that none of the others dominates."""
    return [
        i
        for i, mine in enumerate(entries)
        if all(o.metric in mine for o in objectives)
        and not any(dominates(theirs, mine, objectives) for j, theirs in enumerate(entries) if j != i)
    ]


def best(entries: Sequence[Values], objective: Objective) -> tuple[int, list[int]]:
    """The place of the best estimate, and all places that are not surely worse than it, itself among them."""
    sign = 1 if objective.rises else -1
    first = max(range(len(entries)), key=lambda i: (sign * entries[i][objective.metric].estimate, -i))
    level = [i for i, e in enumerate(entries) if not surely_better(entries[first], e, objective)]
    return first, level


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between two-dimensional points, of which less is better, and a reference that is worse than all."""
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area
