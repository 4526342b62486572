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
SESSION_FACTOR: Final = 2.57  # 95 % of Student's t with five degrees of freedom: six sessions of a side
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
        """The machine was busy: the record and the report say so."""
        return self.clean_share < LEAST_CLEAN_SHARE

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
        spread = found.estimate * self.session_deviation() * SESSION_FACTOR
        return Interval(
            found.estimate,
            found.estimate - float(np.hypot(found.estimate - found.low, spread)),
            found.estimate + float(np.hypot(found.high - found.estimate, spread)),
        )

    def interval_of_pairs(self) -> Interval:
        """The same as if all pairs were independent."""
        kept = [self.ratios[index] for index in self._kept()]
        return Interval(*median_interval(np.asarray(kept), LOOK_CONFIDENCE))

    def session_deviation(self) -> float:
        """Standard deviation, relative, of the ratio by the choice of sessions; 0 where none shows.

        For each side the variance of the sessions' medians, less what the noise of pairs explains of it,
        over the number of sessions (one-way random effects, by the method of moments).
        """
        if len(self.sessions) != len(self.ratios):
            return 0.0
        kept = self._kept()
        logs = np.log([self.ratios[index] for index in kept])
        if not len(logs):
            return 0.0
        noise = (_MAD * float(np.median(np.abs(logs - np.median(logs))))) ** 2
        variance = 0.0
        for side in (1, 2):
            groups: dict[tuple[int, int], list[float]] = {}
            for index, value in zip(kept, logs, strict=True):
                place = self.sessions[index]
                groups.setdefault((place[0], place[side]), []).append(float(value))
            if len(groups) > 1:
                medians = [float(np.median(values)) for values in groups.values()]
                explained = np.mean([_MEDIAN_VARIANCE * noise / len(values) for values in groups.values()])
                variance += max(0.0, float(np.var(medians, ddof=1) - explained)) / len(groups)
        return float(np.sqrt(variance))

    def interval_of_all(self) -> Interval:
        """The same over every pair: what a busy machine would have one believe."""
        return Interval(*median_interval(np.asarray(self.ratios), LOOK_CONFIDENCE))

    def session_effect(self) -> bool:
        """Whether sessions disagree beyond the interval: the median of their medians lies outside it."""
        if len(self.sessions) != len(self.ratios):
            return False
        by_session: dict[tuple[int, int, int], list[float]] = {}
        for index in self._kept():
            by_session.setdefault(self.sessions[index], []).append(self.ratios[index])
        medians = [float(np.median(ratios)) for ratios in by_session.values()]
        interval = self.interval()
        return len(medians) > 1 and not interval.low <= float(np.median(medians)) <= interval.high

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
            "session_effect": self.session_effect(),
            "session_deviation": self.session_deviation(),
            "confidence": LOOK_CONFIDENCE,
        }
        if self.degraded:
            found["all_pairs"] = self.interval_of_all().to_json()
        return found
