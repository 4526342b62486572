"""What a backend is: our adapter to a runtime that executes models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile


class Optimization(StrEnum):
    """Which graph the runtime executes."""

    ALL = "all"  # what is deployed
    NONE = "none"  # the file as written: the reference arithmetic of its Q/DQ pairs


class Hint(StrEnum):
    """What a runtime that can choose is told to be good at."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is executed; part of every record and of the comparison."""

    threads: int = 1
    optimization: Optimization = Optimization.ALL
    spinning: bool = False  # busy waiting disturbs a shared host
    hint: Hint = Hint.LATENCY

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of ``to_json``."""
        return cls(
            threads=value["threads"],
            optimization=Optimization(value["optimization"]),
            spinning=value["spinning"],
            hint=Hint(value["hint"]),
        )

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "threads": self.threads,
            "optimization": self.optimization.value,
            "spinning": self.spinning,
            "hint": self.hint.value,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePrecision:
    """One operator of the graph that the runtime really runs."""

    name: str
    op: str
    integer: bool
    weighted: bool  # convolution or matrix product
    covers: tuple[str, ...] = ()  # operators and stored tensors of the file that it stands for
    placement: str = ""  # where it runs, in the runtime's words: an execution provider, a device


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One operator of the graph that the runtime really runs."""

    name: str
    op: str
    seconds: float
    least: float | None = None  # of single runs, where the runtime tells; its profiler costs time too


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a compiler refused a model."""

    text: str  # in our words
    fix: str | None = None
    said: str = ""  # in its own

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"text": self.text, "fix": self.fix, "said": self.said}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a compiler made of a model for a device that need not be here."""

    accepted: bool
    seconds: float
    engine_bytes: int | None = None
    notes: tuple[str, ...] = ()  # its warnings, as it said them
    reasons: tuple[Reason, ...] = ()
    compiler: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "accepted": self.accepted,
            "engine_bytes": self.engine_bytes,
            "build_seconds": self.seconds,
            "notes": list[JSON](self.notes),
            "reasons": [reason.to_json() for reason in self.reasons],
            "compiler": self.compiler,
        }


class CompileFunction(Protocol):
    """The function that ``BackendSpec.compiles`` names."""

    def __call__(self, model: Path, hardware: HardwareProfile, batch: int, /) -> Compiled:
        """Build an engine for a device, which need not be here."""


class Runtime(Protocol):
    """A loaded model."""

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One inference; blocks until the outputs can be read."""

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name, for example float32."""

    def executed(self) -> list[NodePrecision]:
        """Precision and placement node by node, read from the graph that runs."""

    def describe(self) -> Mapping[str, JSON]:
        """Library version, device, and every setting that the recipe came to in the runtime's own words."""

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """Typical time of each operator over ``runs`` inferences, by the runtime's own clock."""

    def close(self) -> None:
        """Free what the runtime holds."""


class LoadFunction(Protocol):
    """The function that ``BackendSpec.load`` names."""

    def __call__(self, model: Path, recipe: Recipe, hardware: HardwareProfile, /) -> Runtime:
        """Load a model; StageFailedError with the runtime\'s own reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a backend can run here, and if not, why and what to install."""

    available: bool
    reason: str | None = None
    fix: str | None = None
    version: str | None = None
    device: str | None = (
        None  # the accelerator that is here, with its driver; enters the keys of measured steps
    )
    isa: str | None = None  # its generation in the words of hardware profiles, for example cc8.9


class ProbeFunction(Protocol):
    """The function that ``BackendSpec.probe`` names; imports nothing heavy."""

    def __call__(self) -> Availability:
        """Look, and import nothing heavy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A backend, light to import."""

    name: str
    title: str
    kinds: frozenset[DeviceKind]
    probe: str  # "module:function"
    load: str  # "module:function"
    libraries: tuple[str, ...]  # distributions whose version changes results
    takes: frozenset[Kind] = frozenset({Kind.ONNX})
    compiles: str | None = None  # "module:function" of a builder that needs no device
