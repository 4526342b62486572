"""``recipe: auto``: width, layers and precision from a goal alone."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, Timing
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.settings import Distillation, FitSettings

Share = Annotated[float, Field(gt=0, lt=1)]


class StepDown(FitSettings):
    """Training after every cut."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    optimizer: OptimizerSettings = OptimizerSettings(lr=2e-3)


class Polish(FitSettings):
    """Training of the width that is kept."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 4
    optimizer: OptimizerSettings = OptimizerSettings(lr=2e-3)


class Qat(FitSettings):
    """Quantization-aware training, where calibration alone loses too much."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    optimizer: OptimizerSettings = OptimizerSettings(lr=3e-4)
    schedule: ScheduleSettings = ScheduleSettings(name="cosine")


class AutoConfig(Settings):
    """The goal, and how much training it may take."""

    accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = None  # fastest that loses no more
    latency: Share | None = None  # most accurate within this share of the float model's latency
    cost: Annotated[float, Field(gt=0, le=100)] = 3.0  # CPU time of training, in trainings of the float model
    widths: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.7, 0.5, 0.35, 0.25, 0.18, 0.13)
    importance: Literal["l1", "l2", "batch_norm", "taylor", "fisher", "hessian"] = "l2"
    tune: StepDown = StepDown()
    polish: Polish = Polish()
    qat: Qat | None = Qat()  # null: calibration only
    distill: Distillation | None = Distillation()
    calibration_samples: Annotated[int, Field(ge=1)] = 512
    timing: Timing = Timing()

    @model_validator(mode="after")
    def _has_a_goal(self) -> Self:
        if self.accuracy_drop is None and self.latency is None:
            raise PydanticCustomError(
                "goal", "auto needs a goal: accuracy_drop, latency or both", {"fix": "accuracy_drop: 0.005"}
            )
        for name in ("polish", "qat"):
            part = getattr(self, name)
            if part is not None and "validation_share" in part.model_fields_set:
                raise PydanticCustomError(
                    "ignored",
                    "{name}.validation_share would be ignored: the split is that of tune",
                    {"name": name, "fix": "set tune.validation_share"},
                )
        if list(self.widths) != sorted(set(self.widths), reverse=True):
            raise PydanticCustomError(
                "widths",
                "widths are shares of the float latency, from wide to narrow",
                {"fix": f"write {sorted(set(self.widths), reverse=True)}"},
            )
        return self


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Widths and grids follow the device."""
    return {**hardware.pruning.to_json(), **hardware.quantization.facet()}


def check(config: AutoConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Devices that cannot be timed."""
    if hardware is not None and hardware.kind is not DeviceKind.CPU:
        return [
            (
                f"recipe auto times its versions, which works on CPUs so far, and {hardware.name} is none",
                "write the chain: prune, finetune, quantize",
            )
        ]
    return []


SPEC: Final = StageSpec(
    name="auto",
    version=3,
    summary="decide width, layers and precision by measuring on the target",
    config=AutoConfig,
    run="hwopt.stages.auto.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.QUANTIZED_CHECKPOINT, "tried": Kind.TABLE},
    check=check,
    facet=facet,
    times=lambda config: True,
    wants_source=lambda config: True,
    libraries=("torch", "onnx", "onnxscript", "scipy"),
    known=lambda config: frozenset(),  # training decides
    holds_back=lambda config: config.tune.validation_share,
    chooses=True,
    shortens=False,  # it plans its trainings by a budget
)
