"""What the search of ``recipe: auto`` keeps of widths, versions and its budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from torch import nn

from hwopt import checkpoints
from hwopt.core.canonical import JSON
from hwopt.latency.precision import Precision
from hwopt.pruning.widths import Widths

WORTH: Final = 0.97  # a version must be this much faster than a wider or simpler one


@dataclass(slots=True, kw_only=True)
class Rung:
    """One width of the ladder."""

    share: float  # of the float latency that was asked for
    widths: Widths
    in_float: float  # latency over the float model's, measured
    precision: Precision | None  # None: nothing is faster in integer
    quantized: float | None
    module: nn.Module | None = None
    recipe: checkpoints.Recipe | None = None
    drop: float | None = None
    tried: list[dict[str, JSON]] = field(default_factory=list)

    def versions(self) -> list[tuple[float, bool]]:
        """Latency, and whether it is quantized; the fastest first."""
        found = [(self.in_float, False)]
        if self.quantized is not None and self.quantized < self.in_float * WORTH:
            found.append((self.quantized, True))
        return sorted(found)

    def faster_than(self, wider: Rung) -> bool:
        """Whether one of its versions is faster than the same of a wider rung."""
        quantized = self.quantized is not None and self.quantized < (wider.quantized or 1.0) * WORTH
        return self.in_float < wider.in_float * WORTH or quantized

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "share": self.share,
            "widths": dict(self.widths),
            "float": self.in_float,
            "quantized": self.quantized,
            "precision": None if self.precision is None else self.precision.to_json(),
            "drop": self.drop,
            "tried": list[JSON](self.tried),
        }


@dataclass(slots=True)
class Budget:
    """CPU time of all that follows the timing of widths: training, calibration, validation."""

    seconds: float
    before: float = 0.0  # spent on the teacher's answers, before widths were timed
    started: float | None = None

    @property
    def spent(self) -> float:
        """So far."""
        return self.before + (0.0 if self.started is None else time.process_time() - self.started)

    def allows(self, estimate: float) -> bool:
        """Whether a training of about that length still fits."""
        return self.spent + estimate <= self.seconds


@dataclass(slots=True, kw_only=True)
class Version:
    """A trained candidate for the result."""

    module: nn.Module
    recipe: checkpoints.Recipe
    drop: float
    latency: float
    facts: dict[str, JSON]
