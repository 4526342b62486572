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
        """Median ratio with its exact interval, over clean pairs; over all where too few are clean."""
        kept = [self.ratios[index] for index in self._kept()]
        return Interval(*median_interval(np.asarray(kept), LOOK_CONFIDENCE))

    def interval_of_all(self) -> Interval:
        """The same over every pair: what a busy machine would have one believe."""
        return Interval(*median_interval(np.asarray(self.ratios), LOOK_CONFIDENCE))

    def session_effect(self) -> bool:
        """Whether processes disagree: the median of their medians lies outside the interval.

        Sessions of one model can differ by where their memory lies; then pairs are no independent draws, and
        the interval is too narrow for models at large.
        """
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
            "confidence": LOOK_CONFIDENCE,
        }
        if self.degraded:
            found["all_pairs"] = self.interval_of_all().to_json()
        return found
