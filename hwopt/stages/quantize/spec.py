"""Quantize a network, post-training or by training."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import HardwareProfile, QDType, QuantizationScheme, TensorScheme
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec
from hwopt.training.settings import Distillation, FitSettings, OptimizerSettings, ScheduleSettings


class QuantizeConfig(Settings):
    """How to get to integers; types left out are those of the device."""

    method: Literal["ptq", "qat"] = "ptq"
    weights: str | None = None  # for example int4
    activations: str | None = None
    calibration_samples: Annotated[int, Field(ge=1)] = 512
    # The following serve QAT only.
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    optimizer: OptimizerSettings = OptimizerSettings(lr=3e-4)
    schedule: ScheduleSettings = ScheduleSettings(name="cosine")
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    distill: Distillation | None = Distillation()  # from the float model; null learns from labels alone

    @field_validator("weights", "activations")
    @classmethod
    def _is_integer_type(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                QDType.parse(value)
            except ValueError as error:
                raise PydanticCustomError(
                    "dtype", "{text}", {"text": str(error), "fix": "for example int8 or int4"}
                ) from None
        return value

    @model_validator(mode="after")
    def _training_options_need_training(self) -> Self:
        training = {"epochs", "batch_size", "optimizer", "schedule", "validation_share", "distill"}
        given = sorted(training & self.model_fields_set)
        if self.method == "ptq" and given:
            raise PydanticCustomError(
                "no_training",
                "method ptq does not train, so {names} would be ignored",
                {"names": ", ".join(given), "fix": "remove them, or use method: qat"},
            )
        return self

    def fit_settings(self) -> FitSettings:
        """The settings of the training loop."""
        return FitSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
            validation_share=self.validation_share,
        )


def effective_scheme(config: QuantizeConfig, hardware: HardwareProfile) -> QuantizationScheme:
    """The device's scheme with the types that the profile asks for."""
    scheme = hardware.quantization
    weights, activations = scheme.weights, scheme.activations
    if config.weights is not None:
        weights = weights.with_dtype(config.weights)
    if config.activations is not None:
        activations = activations.with_dtype(config.activations)
    return scheme.model_copy(update={"weights": weights, "activations": activations})


def check(config: QuantizeConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Types that the device cannot execute."""
    if hardware is None:
        return [("quantize needs a device", "name a target")]
    problems = []
    scheme = hardware.quantization
    families: tuple[tuple[str, str | None, TensorScheme], ...] = (
        ("weights", config.weights, scheme.weights),
        ("activations", config.activations, scheme.activations),
    )
    for name, asked, family in families:
        legal = (family.dtype, *family.also)
        if asked is not None and asked not in legal:
            problems.append(
                (
                    f"{name} are {asked}, but {hardware.name} runs {', '.join(legal)}",
                    f"choose {' or '.join(legal)}, or target a device that runs {asked}",
                )
            )
    return problems


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Everything that decides about grids and placement."""
    return hardware.quantization.facet()


SPEC: Final = StageSpec(
    name="quantize",
    version=1,
    summary="quantize under the device's scheme: ptq calibrates, qat trains on from there",
    config=QuantizeConfig,
    run="hwopt.stages.quantize.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.QUANTIZED_CHECKPOINT, "decisions": Kind.TABLE},
    check=check,
    facet=facet,
    libraries=("torch",),
)
