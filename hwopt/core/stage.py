"""What a stage is: a value that describes it, and one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Dataset
from hwopt.core.hardware import HardwareProfile
from hwopt.core.ledger import Ledger, NoLedger
from hwopt.core.settings import Settings


class Progress(Protocol):
    """Where a stage says how far it is; one short line, shown on stderr."""

    def __call__(self, text: str, /) -> None:
        """Show one line."""


class Timing(Settings):
    """How a stage times models on the device; what is left out is that of the profile's benchmark."""

    runtime: str | None = None
    batch: Annotated[int, Field(ge=1, le=65536)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None


def timing_of(timing: Timing, benchmark: Any, runtime: str | None) -> Timing:
    """``timing`` with what it leaves open: of the profile's benchmark section, and the runtime found here."""
    return Timing(
        runtime=timing.runtime or runtime,
        batch=timing.batch or getattr(benchmark, "batch", None),
        threads=timing.threads or getattr(benchmark, "threads", None),
    )


def no_facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """For stages whose result does not depend on the device."""
    return {}


def which_device(hardware: HardwareProfile) -> dict[str, JSON]:
    """For measured stages: what is measured for one device is not passed off as another's."""
    return {"name": hardware.name, "isa": list[JSON](hardware.isa)}


def never(config: Any) -> bool:
    """For stages that need neither a stopwatch nor the network that all began with."""
    return False


def one(config: Any) -> int:
    """For stages that take one network."""
    return 1


def all_known(config: Any) -> frozenset[str] | None:
    """For stages whose structure is the same whatever the weights."""
    return None


def nothing(config: Any) -> None:
    """For stages without such a number."""


def unchanged(config: Any) -> Any:
    """For stages that cost as much to run after training as before it."""
    return config


def no_check(config: Any, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """For stages whose settings are legal on every device."""
    return []


def no_check_input(config: Any, kind: Kind) -> list[tuple[str, str]]:
    """For stages that take every kind they consume in the same way."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A stage, light to import: it names its function and does not load it."""

    name: str
    version: int  # raise it when equal inputs give other outputs
    summary: str
    config: type[Settings]
    run: str  # "module:function"
    consumes: Mapping[str, frozenset[Kind]] = field(default_factory=dict)  # port -> acceptable kinds
    produces: Mapping[str, Kind] = field(default_factory=dict)  # port -> kind
    # (settings, device) -> (problem, fix) of every setting the device cannot serve; pure.
    check: Callable[[Any, HardwareProfile | None], list[tuple[str, str]]] = no_check
    # (settings, kind of the checkpoint) -> the same, for what an earlier step hands over; pure.
    check_input: Callable[[Any, Kind], list[tuple[str, str]]] = no_check_input
    # The part of the device that the result depends on; steps that agree on it are one step.
    facet: Callable[[HardwareProfile], dict[str, JSON]] = no_facet
    reads_data: bool = True
    measured: bool = False  # True: the result belongs to this machine
    # Whether the settings have it time models here; they then have a field ``timing``.
    times: Callable[[Any], bool] = never
    # Whether it also takes the network that all began with: port ``source``; and port ``teacher``, where the
    # settings name another candidate as the teacher.
    wants_source: Callable[[Any], bool] = never
    # How many trainings of the profile's network it takes, from different seeds: ports ``member1``, ``member2``, …
    members: Callable[[Any], int] = one
    libraries: tuple[str, ...] = ()  # distributions whose version changes the result
    # The settings that give a network of the same structure without training, so that its cost can be known
    # first; None where the structure stays as it is.
    untrained: Callable[[Any], Settings | None] = unchanged
    # Metrics of a network's structure that do not depend on what it has learnt; None: all of them.
    known: Callable[[Any], frozenset[str] | None] = all_known
    # Share of the training split that its own training leaves out; None where it trains nothing.
    holds_back: Callable[[Any], float | None] = nothing
    # Whether it chooses by the accuracy on that share.
    chooses: bool = False
    # Whether a share of its training shows how good the whole will be.
    shortens: bool = True

    @property
    def is_chain_link(self) -> bool:
        """Whether it may stand in a candidate's chain: a checkpoint in, a checkpoint out."""
        return "checkpoint" in self.consumes and "checkpoint" in self.produces


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """All that a stage may know of the world."""

    workdir: Path  # the only place it writes to
    seed: int
    threads: int  # for training libraries
    hardware: HardwareProfile | None
    model: Mapping[str, JSON]  # the profile's model section
    data: Callable[[], Dataset]  # loads on first call
    progress: Progress
    source_facts: Mapping[str, Any] = field(default_factory=dict)  # of the step that gave the port ``source``
    import_root: Path | None = None  # where the user's own modules are looked for
    keep: Path | None = None  # a folder that outlives a kill: what a long stage resumes from
    ledger: Ledger = field(default_factory=NoLedger)  # numbers by step, and events


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """Files by port, and facts: the JSON that goes into records."""

    files: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)


class StageFunction(Protocol):
    """The function that ``StageSpec.run`` names."""

    def __call__(self, ctx: StageContext, inputs: Mapping[str, Artifact], config: Any, /) -> StageResult:
        """Read inputs, write under ``ctx.workdir``, return paths and facts."""
