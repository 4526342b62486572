"""A plan: steps that depend on each other, and the rows they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwopt.core.choices import Choice
from hwopt.core.hardware import HardwareProfile
from hwopt.core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An output of another step."""

    step: str  # step key
    port: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One execution of a stage; equal steps have equal keys and run once."""

    key: str  # sha256:... of all that the result depends on
    stage: str
    label: str  # for people: "quantize int8-ptq (x86-avx2)"
    config: Settings
    hardware: HardwareProfile | None
    inputs: Mapping[str, Source]
    where: str | None  # file:line in the profile
    model: Choice  # the network of the profile that the step comes from
    threads: int  # for training libraries
    basis: Mapping[str, Any] = field(default_factory=dict)  # what the key is the digest of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate on one target: the steps whose facts make up its result."""

    candidate: str
    target: str
    hardware: str  # the profile that the target resolved to
    is_float: bool  # the float baseline
    quantized: bool = False  # a quantize step stands in the chain
    steps: tuple[str, ...] = ()  # keys, in order; empty where the row is not available
    unavailable: str | None = None  # the reason
    fix: str | None = None
    applicable: bool = True  # False: the device is served, but not with a version of this kind
    notes: Mapping[str, str] = field(default_factory=dict)
    # Where the runtime is chosen by measuring: the evaluation in each. That of the chosen one counts.
    evaluations: Mapping[str, str] = field(default_factory=dict)  # runtime -> step key

    def counted(self, runtime: str | None) -> tuple[str, ...]:
        """The steps that make up the result once ``runtime`` is chosen; None before, or where nothing is."""
        if not self.evaluations:
            return self.steps
        chosen = self.evaluations.get(runtime or "", next(iter(self.evaluations.values())))
        others = set(self.evaluations.values()) - {chosen}
        return tuple(key for key in self.steps if key not in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in an order in which they can run, and the table they fill."""

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
