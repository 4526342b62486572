"""Numbers that say how they were obtained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hwopt.core.canonical import JSON, finite_or_none

DRIFT: Final = 0.15  # of the reference workload's time, from where on absolute times are not judged


class Tier(StrEnum):
    """How a number was obtained, best first."""

    MEASURED = "measured"  # it ran here
    COMPILED = "compiled"  # an engine was built, not run
    ESTIMATED = "estimated"  # an analytic model of the device
    PREDICTED = "predicted"  # a statistical model fitted on other devices


class Verdict(StrEnum):
    """What a requirement, a row or a run came to."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with a two-sided interval in the same unit."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> JSON:
        """``{"estimate", "low", "high"}``, finite or null."""
        return {
            "estimate": finite_or_none(self.estimate),
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
        }
