"""A pipeline profile after validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.choices import Choice
from hwopt.core.hardware import HardwareProfile
from hwopt.core.search import Holdout, SearchSettings
from hwopt.core.settings import Settings

Metric = Literal[
    "accuracy",
    "accuracy_drop",
    "f1",
    "agreement",
    "latency_ms",
    "relative_latency",
    "speedup",
    "file_bytes",
    "activation_bytes",
    "parameters",
    "macs",
    "integer_share",
    "fits",
]
HOST_CPU = "host-cpu"


class Requirement(Settings):
    """A bound that a version must keep to be shipped."""

    metric: Metric
    target: str | None = None  # None: every target that can be judged here
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.metric == "fits":
            if self.min is not None or self.max is not None:
                raise ValueError("`fits` takes no bound")
        elif (self.min is None) == (self.max is None):
            raise ValueError("give exactly one of min and max")
        return self

    def __str__(self) -> str:
        bound = (
            ""
            if self.metric == "fits"
            else f" ≥ {self.min:g}"
            if self.min is not None
            else f" ≤ {self.max:g}"
        )
        return f"{self.metric}{bound}" + (f" on {self.target}" if self.target else "")


class Release(Settings):
    """What the user declares about shipping, for the readiness report; nothing here is measured."""

    rollback: str | None = None  # run id or tag whose chosen version is put back if this one fails
    restore: str | None = None  # how, in a sentence
    canary: str | None = None  # who gets it first, and for how long
    signals: tuple[str, ...] = ()  # what is watched: input range, output distribution, latency
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None  # look at it again by then
    model_licence: str | None = None
    data_licence: str | None = None
    preprocessing: str | None = None  # name or version of what turns raw data into inputs
    max_opset: Annotated[int, Field(ge=1, le=100)] | None = None
    inputs: dict[str, list[int | str | None]] | None = None  # the contract: name to shape
    outputs: dict[str, list[int | str | None]] | None = None


class RunLimits(Settings):
    """What a step may use; a step that goes beyond is a failed step, and the other candidates go on."""

    step_seconds: Annotated[float, Field(ge=1, le=86400 * 30)] = 86400.0
    memory_gb: Annotated[float, Field(ge=0.5, le=100_000)] | None = None  # None: all that the machine has
    file_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None  # of one file that a step writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One compression step of a candidate."""

    stage: str
    config: Settings
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A chain of compression steps after training; the empty chain is the float baseline."""

    name: str
    chain: tuple[Link, ...]
    where: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device named by the profile; ``hardware`` is None for the host until it is detected."""

    name: str
    hardware: HardwareProfile | None
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineProfile:
    """What the user asked for, with the place of every part."""

    path: Path
    name: str
    seed: int
    threads: int | None  # None: the cores that the process may use
    data: Choice
    data_where: str
    model: Choice
    model_where: str
    source: Link  # the step that gives the float model: train, or read for an ONNX file
    benchmark: Settings
    inspect: Settings  # how each deployed file is tried
    estimate: Settings  # how networks are laid out on FPGA targets
    candidates: tuple[Candidate, ...]
    targets: tuple[Target, ...]
    requirements: tuple[Requirement, ...]
    value: Any  # the YAML's own mapping, with --set applied; never changed
    text: str  # the YAML as read, with --set applied as lines below it
    where: Callable[[str], str]  # section name -> file:line
    compare: Settings | None = None  # a race between trainings; serves `hwopt train compare` only
    release: Release = field(default_factory=Release)
    limits: RunLimits = field(default_factory=RunLimits)
    search: SearchSettings | None = None  # serves `hwopt search` only
    ship: str | None = None  # the one candidate that is judged; others are there to be compared with
    holdout: Holdout | None = None  # what stands in for the test split while searching
    track: tuple[Choice, ...] = ()  # trackers beside the ledger; no part of any step's key
