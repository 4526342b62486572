"""Remove channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, Timing
from hwopt.training.choices import OptimizerSettings
from hwopt.training.settings import Distillation, FitSettings

Goal = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class TuneSettings(FitSettings):
    """Training between cuts."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3)


class PruneConfig(Settings):
    """How much to remove, and how."""

    method: Literal["channel"] = "channel"
    ratio: Goal | None = None  # share of the channels to remove
    macs: Goal | None = None  # share of the float model's multiply-accumulates to keep
    latency: Goal | None = None  # share of the float model's latency to keep, measured on the target
    estimated: bool = False  # latency by the device's roofline, or of the FPGA design that fits
    importance: Literal["l1", "l2", "batch_norm", "taylor", "fisher", "hessian"] = "l2"
    scope: Literal["group", "network"] = "group"  # of ratio: every group alike, or the weakest of all
    layers: Mapping[str, Ratio] = Field(default_factory=dict)  # own ratios by pattern; 0 keeps a group whole
    schedule: Literal["one_shot", "iterative", "growing"] = "one_shot"
    steps: Annotated[int, Field(ge=2, le=100)] = 3  # cuts of the iterative schedule, training between them
    strength: Annotated[float, Field(gt=0)] = 0.1  # of the growing penalty, at its end
    tune: TuneSettings = TuneSettings()  # between cuts, or under the growing penalty
    distill: Distillation | None = Distillation()  # while tuning
    sensitivity: bool = False  # also cut every group alone, at several ratios, and note the accuracy
    timing: Timing = Timing()

    @field_validator("layers")
    @classmethod
    def _are_patterns(cls, layers: Mapping[str, float]) -> Mapping[str, float]:
        for pattern in layers:
            try:
                re.compile(pattern)
            except re.error as error:
                raise PydanticCustomError(
                    "pattern",
                    "{pattern} is not a regular expression: {why}",
                    {"pattern": repr(pattern), "why": str(error), "fix": "for example '4.body.*'"},
                ) from None
        return layers

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        given = [n for n in ("ratio", "macs", "latency") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "goal",
                "prune needs exactly one of ratio, macs and latency{said}",
                {
                    "said": f", and has {', '.join(given)}" if given else "",
                    "fix": "for example latency: 0.5",
                },
            )
        self._ignored("scope", self.ratio is None, "serves ratio")
        self._ignored("estimated", self.latency is None, "serves latency")
        self._ignored("steps", self.schedule != "iterative", "serves the iterative schedule")
        self._ignored("strength", self.schedule != "growing", "serves the growing schedule")
        self._ignored("tune", self.schedule == "one_shot", "serves the schedules iterative and growing")
        self._ignored("distill", self.schedule == "one_shot", "serves the schedules iterative and growing")
        self._ignored("timing", self.latency is None, "serves a latency")
        return self

    def _ignored(self, name: str, is_ignored: bool, why: str) -> None:
        if is_ignored and name in self.model_fields_set:
            raise PydanticCustomError(
                "ignored",
                "{name} {why}, and would be ignored",
                {"name": name, "why": why, "fix": "remove it"},
            )

    @property
    def needs_timing(self) -> bool:
        """Whether models are timed on this machine."""
        return self.latency is not None and not self.estimated

    @property
    def cuts(self) -> int:
        """How often channels are removed."""
        return self.steps if self.schedule == "iterative" else 1

    @property
    def trains(self) -> bool:
        """Whether the schedule trains."""
        return self.schedule != "one_shot"


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Widths follow the device, and so do estimates."""
    return {
        **hardware.pruning.to_json(),
        "compute": hardware.compute.to_json() if hardware.compute else None,
        "memory": hardware.memory.to_json() if hardware.memory else None,
        "fpga": hardware.fpga.to_json() if hardware.fpga else None,
    }


def check(config: PruneConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Goals that a device cannot serve."""
    if hardware is None or config.latency is None:
        return []
    if hardware.kind is DeviceKind.FPGA:
        if config.estimated:
            return []
        return [
            (
                f"{hardware.name} is a design: its latency is estimated",
                "add estimated: true, or give the goal in macs",
            )
        ]
    compute, memory = hardware.compute, hardware.memory
    known = compute is not None and "fp32" in compute.ops_per_cycle and memory is not None
    if config.estimated and not (known and memory is not None and memory.bandwidth_gbs is not None):
        why = f"{hardware.name} gives no fp32 operations a cycle or no bandwidth to estimate a latency from"
        return [(why, "give the goal in macs")]
    return []


def untrained(config: PruneConfig) -> PruneConfig:
    """One cut by magnitude: fresh weights have no better order."""
    kept = {"ratio", "macs", "latency", "estimated", "scope", "layers", "timing"} & config.model_fields_set
    return PruneConfig.model_validate({name: getattr(config, name) for name in kept})


def known(config: PruneConfig) -> frozenset[str] | None:
    """A goal is met whatever the weights, and says nothing of the rest; ranks over the whole network need them."""
    if config.latency is not None:
        return frozenset({"latency_ms", "relative_latency", "speedup"})
    if config.macs is not None:
        return frozenset({"macs"})
    return frozenset() if config.scope == "network" else None


SPEC: Final = StageSpec(
    name="prune",
    version=4,
    summary="remove channels to a goal, widths rounded to what the device likes",
    config=PruneConfig,
    run="hwopt.stages.prune.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT, "cuts": Kind.TABLE},
    check=check,
    facet=facet,
    times=lambda config: config.needs_timing,
    untrained=untrained,
    holds_back=lambda config: None if config.schedule == "one_shot" else config.tune.validation_share,
    known=known,
    wants_source=lambda config: True,
    libraries=("torch", "onnx", "onnxscript", "scipy"),
)
