"""What pairs of blocks say: a ratio, how sure it is, and whether the sessions agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hwopt.core.canonical import JSON
from hwopt.core.measurement import Interval, Verdict
from hwopt.numerics.intervals import median_interval

LOOKS: Final = (20, 40, 80, 160)  # clean pairs at which the interval is looked at
LAST_LOOK: Final = LOOKS[-1]
LOOK_CONFIDENCE: Final = 0.9875  # four looks keep the family at 95 %
# 95 % of Student's t, two-sided, by degrees of freedom: the factor on a standard deviation that few sessions gave.
_STUDENT: Final = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18)
_NORMAL: Final = 1.96
_MAD: Final = 1.4826  # standard deviations of a normal in a median absolute deviation
_MEDIAN_VARIANCE: Final = 1.57  # of a median of n, in variances over n
LEAST_CLEAN_SHARE: Final = 0.6
LEAST_PAIRS: Final = 8  # fewer give no interval at LOOK_CONFIDENCE


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All pairs of one comparison; ``ratios`` are baseline over candidate, so that above 1 is faster."""

    ratios: list[float] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    sessions: list[tuple[int, int, int]] = field(default_factory=list)  # place, baseline's, candidate's

    @property
    def clean_share(self) -> float:
        """Share of pairs that nothing disturbed."""
        return sum(self.clean) / len(self.clean) if self.clean else 0.0

    @property
    def degraded(self) -> bool:
        """The machine was busy, or too few pairs are clean to do without the others: the record says so."""
        return self.clean_share < LEAST_CLEAN_SHARE or sum(self.clean) < LEAST_PAIRS

    def _kept(self) -> list[int]:
        too_few = sum(self.clean) < LEAST_PAIRS
        return [index for index, clean in enumerate(self.clean) if clean or too_few]

    def interval(self) -> Interval:
        """Median ratio with its interval, over clean pairs; over all where too few are clean.

        The exact interval of the pairs, widened by what the sessions of one model differ from each other (by
        where their memory lies): pairs of the same sessions are no independent draws.
        """
        found = self.interval_of_pairs()
        if not np.isfinite([found.low, found.high]).all():
            return found
        spread = found.estimate * self.session_error()
        return Interval(
            found.estimate,
            found.estimate - float(np.hypot(found.estimate - found.low, spread)),
            found.estimate + float(np.hypot(found.high - found.estimate, spread)),
        )

    def interval_of_pairs(self) -> Interval:
        """The same as if all pairs were independent."""
        kept = [self.ratios[index] for index in self._kept()]
        return Interval(*median_interval(np.asarray(kept), LOOK_CONFIDENCE))

    def interval_of_all(self) -> Interval:
        """The same over every pair: what a busy machine would have one believe."""
        return Interval(*median_interval(np.asarray(self.ratios), LOOK_CONFIDENCE))

    def session_error(self) -> float:
        """Half-width, relative, that the choice of sessions and processes adds; 0 where none shows.

        The variance of the medians of each side's sessions, and that of the medians of processes, less what
        the noise of pairs explains of it (one-way random effects, by the method of moments), over their
        number. A process holds several sessions, so that the greater of the two counts. With two processes the
        second is known badly, and takes the factor of the first.
        """
        if len(self.sessions) != len(self.ratios):
            return 0.0
        kept = self._kept()
        logs = np.log([self.ratios[index] for index in kept])
        if not len(logs):
            return 0.0
        noise = (_MAD * float(np.median(np.abs(logs - np.median(logs))))) ** 2

        def groups(*parts: int) -> list[list[float]]:
            found: dict[tuple[int, ...], list[float]] = {}
            for index, value in zip(kept, logs, strict=True):
                place = self.sessions[index]
                found.setdefault(tuple(place[part] for part in parts), []).append(float(value))
            return list(found.values())

        sides = [groups(0, 1), groups(0, 2)]
        by_session = sum(_between(found, noise) for found in sides)
        variance = max(by_session, _between(groups(0), noise))
        return float(np.sqrt(variance)) * student(min(len(found) for found in sides) - 1)

    def narrow(self, half_width: float) -> bool:
        """Whether the interval's half-width, relative, is within ``half_width``."""
        interval = self.interval()
        return (interval.high - interval.low) / 2 <= half_width * interval.estimate

    def verdict(self, margin: float) -> Verdict:
        """PASS where the candidate is surely no slower than by ``margin``, FAIL where it surely is."""
        interval = self.interval()
        if interval.low >= 1 - margin:
            return Verdict.PASS
        return Verdict.FAIL if interval.high < 1 - margin else Verdict.INCONCLUSIVE

    def to_json(self) -> dict[str, JSON]:
        """What stands beside the ratio in a record."""
        found: dict[str, JSON] = {
            "count": len(self.ratios),
            "clean_share": self.clean_share,
            "degraded": self.degraded,
            "session_error": self.session_error(),
            "confidence": LOOK_CONFIDENCE,
        }
        if self.degraded:
            found["all_pairs"] = self.interval_of_all().to_json()
        return found


def student(freedom: int) -> float:
    """95 % of Student's t, two-sided."""
    if freedom < 1:
        return 0.0  # one session: nothing is known of others, and no variance is claimed
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL


def _between(groups: list[list[float]], noise: float) -> float:
    """Variance of the mean of groups' medians, beyond what ``noise``, the variance of a value, explains."""
    if len(groups) < 2:
        return 0.0
    medians = [float(np.median(values)) for values in groups]
    explained = float(np.mean([_MEDIAN_VARIANCE * noise / len(values) for values in groups]))
    return max(0.0, float(np.var(medians, ddof=1)) - explained) / len(groups)
