"""What a crew is asked to do, and what it answers: plain JSON, for this process or another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwopt.core.canonical import JSON, canonical_json
from hwopt.search.values import Value

Sample = Mapping[str, JSON]  # axis -> value; axes that are closed are absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One version, tried once: what is known before it is trained, or a training of it."""

    trial: int
    sample: Sample
    trained: bool
    share: float = 1.0  # of the training's steps
    fold: int = 0
    seed: int = 0

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "trial": self.trial,
            "sample": dict(self.sample),
            "trained": self.trained,
            "share": self.share,
            "fold": self.fold,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        return cls(**value)

    @property
    def name(self) -> str:
        """For people."""
        part = f"{self.share:.0%} of the training" if self.trained else "before training"
        return f"trial {self.trial}, {part}" + (f", fold {self.fold}" if self.fold else "")

    @property
    def key(self) -> str:
        """The same for the same work."""
        return canonical_json(self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    status: str  # ok | failed
    values: Mapping[str, Value] = field(default_factory=dict)
    reason: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of training, all threads
    worker: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "status": self.status,
            "values": {name: value.to_json() for name, value in self.values.items()},
            "reason": self.reason,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "worker": self.worker,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        """The inverse of ``to_json``."""
        values = {name: Value.from_json(v) for name, v in value["values"].items()}
        return cls(**{**value, "values": values, "notes": tuple(value["notes"])})
