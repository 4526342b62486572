"""Many networks in one: a super-net over widths and depth, a latency table, and the best network within a goal."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.search import problem
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, Timing
from hwopt.training.choices import OptimizerSettings
from hwopt.training.settings import FitSettings

Goal = Annotated[float, Field(gt=0, lt=1)]


class SuperSettings(FitSettings):
    """Training of all networks together, from the weights of the whole one."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3)

    @model_validator(mode="after")
    def _in_single_precision(self) -> Self:
        if self.precision == "fp64":
            raise problem("precision", "narrow networks are trained in fp32, not in fp64", "remove precision")
        return self


class ElasticConfig(Settings):
    """Which networks there are, and which one is wanted."""

    latency: Goal | None = None  # share of the float model's latency, measured on the target
    macs: Goal | None = None  # share of its multiply-accumulates
    widths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (
        1.0, 0.75, 0.5, 0.25,  # shares of each group
    )  # fmt: skip
    depth: bool = False  # blocks that keep their input's shape may be left out
    per_step: Annotated[int, Field(ge=0, le=16)] = (
        2  # random networks in a step, beside the whole and the least
    )
    train: SuperSettings = SuperSettings()
    converged: Annotated[float, Field(ge=0, le=1)] = (
        0.8  # validation accuracy that the whole network must have
    )
    scored: Annotated[int, Field(ge=4, le=4096)] = 64  # networks looked at before evolution
    population: Annotated[int, Field(ge=8, le=4096)] = 64
    generations: Annotated[int, Field(ge=1, le=1000)] = 20
    finalists: Annotated[int, Field(ge=1, le=256)] = 20  # looked at after it
    quantized: bool = False  # looked at with weights and activations rounded as the device has them
    least_tau: Annotated[float, Field(ge=0, le=1)] = (
        0.8  # of the latency table against measurement, else refused
    )
    timing: Timing = Timing()

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.latency is None) == (self.macs is None):
            raise problem("goal", "elastic needs exactly one of latency and macs", "for example latency: 0.5")
        if sorted(set(self.widths), reverse=True) != list(self.widths) or self.widths[0] != 1:
            raise problem(
                "widths", "widths are shares from 1.0 down, each once", "for example [1.0, 0.75, 0.5, 0.25]"
            )
        if len(self.widths) < 2 and not self.depth:
            raise problem("widths", "there is one network only", "add a width, or depth: true")
        if self.latency is None and "timing" in self.model_fields_set:
            raise problem("ignored", "timing serves a latency, and would be ignored", "remove it")
        return self


def check(config: ElasticConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Devices that cannot be timed."""
    if hardware is not None and config.latency is not None and hardware.kind is not DeviceKind.CPU:
        return [
            (f"elastic times layers on CPUs so far, and {hardware.name} is none", "give the goal in macs")
        ]
    return []


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Widths follow the device; so does rounding."""
    return {**hardware.pruning.to_json(), **hardware.quantization.facet()}


SPEC: Final = StageSpec(
    name="elastic",
    version=1,
    summary="train many widths and depths as one network, and cut out the best within a goal",
    config=ElasticConfig,
    run="hwopt.stages.elastic.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT, "networks": Kind.TABLE},
    check=check,
    facet=facet,
    times=lambda config: config.latency is not None,
    wants_source=lambda config: True,
    known=lambda config: frozenset(),  # training decides
    holds_back=lambda config: config.train.validation_share,
    chooses=True,
    shortens=False,  # a super-net that has not converged is refused
    libraries=("torch", "onnx", "onnxscript", "scipy"),
)
