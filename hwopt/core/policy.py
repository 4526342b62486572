"""A gate's policy: what a version must show before it is released."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.measurement import Tier
from hwopt.core.settings import Settings

PolicyMetric = Literal[
    "accuracy",
    "accuracy_drop",
    "f1",
    "agreement",
    "latency_ms",
    "p99_ms",
    "speedup",
    "file_bytes",
    "memory_mb",
    "load_ms",
    "macs",
    "parameters",
    "integer_share",
    "fits",
    "ready",
]
# What can be held against a baseline: it is measured anew, or does not depend on the day.
RELATIVE: Final = ("latency_ms", "accuracy", "accuracy_drop", "file_bytes", "macs", "parameters")
# What is a statistic of samples or calls.
SAMPLED: Final = ("accuracy", "accuracy_drop", "f1", "agreement", "latency_ms", "p99_ms", "speedup")
UNBOUNDED: Final = ("fits", "ready")  # they hold or they do not
# What has the tier of the row; the rest is counted or measured wherever the row is.
TIERED: Final = ("latency_ms", "p99_ms", "speedup", "fits", "memory_mb", "load_ms")


class Rule(Settings):
    """One bound."""

    metric: PolicyMetric
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None  # None: made of the others
    target: str | None = None  # None: every target that has a version to ship
    candidate: str | None = None  # None: the version to ship
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    of: Literal["baseline"] | None = None  # a ratio to the baseline's; of accuracy_drop, the drop from it
    severity: Literal["block", "warn"] = "block"
    tier: Tier = Tier.MEASURED  # the weakest evidence that passes; predictions never do
    min_samples: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.metric in UNBOUNDED:
            if self.min is not None or self.max is not None:
                raise ValueError(f"`{self.metric}` takes no bound")
        elif (self.min is None) == (self.max is None):
            raise ValueError("give exactly one of min and max")
        if self.tier is Tier.PREDICTED:
            raise ValueError("a prediction never passes; write estimated, compiled or measured")
        if self.min_samples is not None and (self.of is not None or self.metric not in SAMPLED):
            raise ValueError(f"min_samples belongs to {', '.join(SAMPLED)}, and not to ratios")
        if self.of is not None and self.metric not in RELATIVE:
            raise ValueError(
                f"`{self.metric}` cannot be held against a baseline; these can: {', '.join(RELATIVE)}"
            )
        return self

    @property
    def title(self) -> str:
        """For people, and the name that a waiver uses."""
        if self.name is not None:
            return self.name
        sign = (
            ""
            if self.metric in UNBOUNDED
            else f" ≥ {self.min:g}"
            if self.min is not None
            else f" ≤ {self.max:g}"
        )
        parts = [
            f"{self.metric}{sign}",
            "of baseline" if self.of else "",
            f"on {self.target}" if self.target else "",
        ]
        return " ".join([*filter(None, parts), *([f"for {self.candidate}"] if self.candidate else [])])


class Waiver(Settings):
    """A rule that may fail for a while; it is printed wherever the verdict is."""

    rule: str  # its title
    reason: Annotated[str, Field(min_length=3)]
    owner: Annotated[str, Field(min_length=1)]
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]

    @model_validator(mode="after")
    def _a_day(self) -> Self:
        date.fromisoformat(self.expires)
        return self


class Policy(Settings):
    """A policy file."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = "gate"
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    waivers: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _waivers_name_rules(self) -> Self:
        titles = [rule.title for rule in self.rules]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"two rules are called {twice[0]!r}; give them names")
        for waiver in self.waivers:
            if waiver.rule not in titles:
                raise ValueError(
                    f"the waiver names {waiver.rule!r}, which is no rule; rules: {'; '.join(titles)}"
                )
        return self
