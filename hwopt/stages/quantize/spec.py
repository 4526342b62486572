"""Quantize a network, post-training or by training."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import (
    DeviceKind,
    HardwareProfile,
    Mode,
    QDType,
    QuantizationScheme,
    TensorScheme,
)
from hwopt.core.stage import StageSpec, Timing
from hwopt.quantization.settings import OscillationSettings, PtqSettings
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.settings import Distillation, FitSettings

_TRAINING: Final = frozenset(
    {
        "epochs",
        "batch_size",
        "optimizer",
        "schedule",
        "validation_share",
        "distill",
        "learn_zero_points",
        "batch_norm_epochs",
        "oscillations",
    }
)
_CALIBRATION: Final = frozenset(
    {"observer", "equalize", "bias_correction", "adaround", "mixed", "calibration_samples", "tune"}
)
_SERVES_OTHERS: Final = {
    "ptq": _TRAINING | {"block"},
    "qat": frozenset({"block", "adaround"}),
    "dynamic": _TRAINING | (_CALIBRATION - {"mixed", "calibration_samples"}) | {"block", "activations"},
    "weight_only": _TRAINING | _CALIBRATION | {"activations", "smooth"},
}
_WHY: Final = {
    "ptq": "does not train, and stores weights with a scale a channel",
    "qat": "learns its rounding, and has a scale a channel",
    "dynamic": "neither trains nor has scales to calibrate",
    "weight_only": "neither trains nor calibrates",
}


class QuantizeConfig(PtqSettings):
    """How to get to integers; types left out are those of the device."""

    method: Literal["ptq", "qat", "dynamic", "weight_only"] = "ptq"
    weights: str | None = None  # for example int4
    activations: str | None = None
    # weight_only: input channels that share a scale, a power of two
    block: Literal[16, 32, 64, 128, 256, 512] | None = None
    where_faster: bool = False  # the layers that make the whole model fastest here, by timing; at least one
    timing: Timing = Timing()  # of where_faster
    allow_float: bool = False  # accept operators that the runtime runs in float all the same
    calibration_samples: Annotated[int, Field(ge=1)] = 512
    # The following serve QAT only.
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    optimizer: OptimizerSettings = OptimizerSettings(lr=3e-4)
    schedule: ScheduleSettings = ScheduleSettings(name="cosine")
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    distill: Distillation | None = Distillation()  # from the float model; null learns from labels alone
    learn_zero_points: bool = False  # LSQ+; otherwise LSQ, which learns scales only
    batch_norm_epochs: Annotated[int, Field(ge=0)] = 0  # that batch statistics live on before they freeze
    oscillations: OscillationSettings | None = None

    @model_validator(mode="after")
    def _where_faster_is_static(self) -> Self:
        if self.where_faster and self.method not in {"ptq", "qat"}:
            raise PydanticCustomError(
                "where_faster",
                "where_faster times static versions, and the method is {method}",
                {"method": self.method, "fix": "use method ptq or qat"},
            )
        if self.distill is not None and self.distill.features:
            raise PydanticCustomError(
                "features",
                "features are matched between layers, which a quantized graph no longer has",
                {"fix": "match them in a finetune step before"},
            )
        if "timing" in self.model_fields_set and not self.where_faster:
            raise PydanticCustomError(
                "ignored", "timing serves where_faster, and would be ignored", {"fix": "remove it"}
            )
        return self

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
        ignored = sorted(_SERVES_OTHERS[self.method] & self.model_fields_set)
        if ignored:
            raise PydanticCustomError(
                "no_training",
                "method {method} {why}, so {names} would be ignored",
                {
                    "method": self.method,
                    "why": _WHY[self.method],
                    "names": ", ".join(ignored),
                    "fix": "remove them, or use another method",
                },
            )
        return self

    @model_validator(mode="after")
    def _trains_with_legal_settings(self) -> Self:
        if self.method == "qat":
            self.fit_settings()
        return self

    def ptq_settings(self) -> PtqSettings:
        """The part that serves calibration; what the user did not set stays open to tuning."""
        given = PtqSettings.model_fields.keys() & self.model_fields_set
        return PtqSettings.model_construct(given, **{n: getattr(self, n) for n in PtqSettings.model_fields})

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
    """The device's scheme with the types and the mode that the profile asks for."""
    scheme = hardware.quantization
    weights, activations = scheme.weights, scheme.activations
    if config.method == "weight_only":
        weights = TensorScheme(
            dtype=config.weights or "int8", symmetric=True, granularity="channel", block=config.block
        )
        why = "stored in few bits; the arithmetic is float"
        return scheme.model_copy(update={"weights": weights, "mode": Mode.WEIGHT_ONLY, "why": why})
    if config.weights is not None:
        weights = weights.with_dtype(config.weights)
    if config.activations is not None:
        activations = activations.with_dtype(config.activations)
    mode = Mode.DYNAMIC if config.method == "dynamic" else Mode.STATIC
    return scheme.model_copy(update={"weights": weights, "activations": activations, "mode": mode})


def check(config: QuantizeConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Types that the device cannot execute."""
    if hardware is None:
        return [("quantize needs a device", "name a target")]
    problems: list[tuple[str, str]] = []
    scheme = hardware.quantization
    if config.where_faster and hardware.kind is not DeviceKind.CPU:
        problems.append((f"where_faster times CPUs, and {hardware.name} is none", "remove where_faster"))
    if config.method in {"dynamic", "weight_only"} and hardware.kind is not DeviceKind.CPU:
        problems.append(
            (f"method {config.method} is for CPUs, and {hardware.name} is none", "use method: ptq or qat")
        )
    if config.method in {"dynamic", "weight_only"} and hardware.runtimes[:1] not in {(), ("onnxruntime",)}:
        problems.append(
            (
                f"method {config.method} has kernels in ONNX Runtime, and {hardware.name} runs "
                f"{hardware.runtimes[0]}",
                "use method: ptq, or a target that runs onnxruntime",
            )
        )
    if config.method == "weight_only":
        asked_types = [
            ("weights", config.weights),
            *((f"weights of {r.layers}", r.weights) for r in config.rules),
        ]
        for name, asked in asked_types:
            if asked not in {None, "int4", "int8"}:
                problems.append((f"weight_only {name} are {asked}", "choose int4 or int8"))
        if any(rule.activations for rule in config.rules):
            problems.append(("weight_only leaves activations in float", "remove activations from the rules"))
        return problems
    mixed = config.mixed
    if (
        mixed is not None
        and mixed.activations is None
        and mixed.raise_to == (config.weights or scheme.weights.dtype)
    ):
        problems.append(
            (f"mixed raises {mixed.raise_to} to {mixed.raise_to}, which changes nothing", "raise_to: float")
        )
    raised = None if mixed is None or mixed.raise_to == "float" else mixed.raise_to
    families: list[tuple[str, str | None, TensorScheme]] = [
        ("weights", config.weights, scheme.weights),
        ("activations", config.activations, scheme.activations),
        ("raised weights", raised, scheme.weights),
        ("raised activations", mixed.activations if mixed else None, scheme.activations),
    ]
    for rule in config.rules:
        families.append((f"weights of {rule.layers}", rule.weights, scheme.weights))
        families.append((f"activations of {rule.layers}", rule.activations, scheme.activations))
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


def check_input(config: QuantizeConfig, kind: Kind) -> list[tuple[str, str]]:
    """Methods that need a torch module."""
    features = {
        "qat": config.method == "qat",
        "adaround": config.adaround is not None,
        "where_faster": config.where_faster,
    }
    needs = [name for name, asked in features.items() if asked]
    if kind is Kind.ONNX and needs:
        fix = "use method: ptq" if "qat" in needs else f"remove {needs[0]}"
        return [(f"{needs[0]} needs the torch module, and the model is an ONNX file", fix)]
    return []


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Everything that decides about grids and placement."""
    return hardware.quantization.facet()


def untrained(config: QuantizeConfig) -> QuantizeConfig:
    """The same types without training them, and without care for an accuracy that is not there yet."""
    idle = _TRAINING | {"method", "equalize", "bias_correction", "adaround", "tune", "smooth"}
    kept = {name: getattr(config, name) for name in config.model_fields_set - idle}
    return QuantizeConfig.model_validate(
        {"method": "ptq" if config.method == "qat" else config.method, **kept}
    )


SPEC: Final = StageSpec(
    name="quantize",
    version=3,
    summary="quantize under the device's scheme: ptq, qat, dynamic, weight_only",
    config=QuantizeConfig,
    run="hwopt.stages.quantize.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT, Kind.ONNX})},
    produces={"checkpoint": Kind.QUANTIZED_CHECKPOINT, "decisions": Kind.TABLE},
    check=check,
    check_input=check_input,
    facet=facet,
    times=lambda config: config.where_faster,
    untrained=untrained,
    known=lambda config: None if config.mixed is None else frozenset({"macs", "parameters"}),
    wants_source=lambda config: config.method == "qat" and config.distill is not None,
    libraries=("torch", "onnx", "onnxscript", "scipy"),
)
