"""What a backend is: our adapter to a runtime that executes models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile


class Optimization(StrEnum):
    """Which graph the runtime executes."""

    ALL = "all"  # what is deployed
    NONE = "none"  # the file as written: the reference arithmetic of its Q/DQ pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is executed; part of every record and of the comparison."""

    threads: int = 1
    optimization: Optimization = Optimization.ALL
    spinning: bool = False  # busy waiting disturbs a shared host

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "threads": self.threads,
            "optimization": self.optimization.value,
            "spinning": self.spinning,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePrecision:
    """One operator of the graph that the runtime really runs."""

    name: str
    op: str
    integer: bool
    weighted: bool  # convolution or matrix product
    covers: tuple[str, ...] = ()  # operators and stored tensors of the file that it stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One operator of the graph that the runtime really runs."""

    name: str
    op: str
    seconds: float


class Runtime(Protocol):
    """A loaded model."""

    def run(self, inputs: Mapping[str, Array], /) -> list[Array]:
        """One inference; blocks until the outputs can be read."""

    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name to shape; None where the size is dynamic."""

    def dtypes(self) -> Mapping[str, str]:
        """Input name to NumPy type name, for example float32."""

    def executed(self) -> list[NodePrecision]:
        """Precision node by node, read from the optimized graph."""

    def profile(self, inputs: Mapping[str, Array], runs: int, /) -> list[OperatorTime]:
        """Mean time of each operator over ``runs`` inferences, by the runtime's own clock."""

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
    libraries: tuple[str, ...]
