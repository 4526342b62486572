"""What a profile may say about training; shared by the stages train, finetune and quantize."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.canonical import canonical_json
from hwopt.core.settings import Settings
from hwopt.plugins import did_you_mean, resolve, table
from hwopt.training.optimizers import OptimizerSpec

Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def known_name(kind: str, name: str) -> str:
    """``name`` if a registry has it, else an error with the nearest name."""
    if name not in table(kind):
        raise PydanticCustomError(
            "unknown_name",
            "unknown {kind} '{name}'",
            {"kind": kind, "name": name, "fix": did_you_mean(name, table(kind))},
        )
    return name


class OptimizerSettings(Settings):
    """An optimizer by name; options beyond ``lr`` and ``weight_decay`` are its own."""

    model_config = ConfigDict(extra="allow")

    name: str = "adamw"
    lr: Rate | None = None  # None: the default of the optimizer
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-4  # on matrices only, not on norms and biases

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name("optimizer", name)

    @model_validator(mode="after")
    def _takes_options(self) -> Self:
        spec: OptimizerSpec = resolve("optimizer", self.name)
        try:
            spec.options.model_validate_json(canonical_json(self.options))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            option = str(first["loc"][0])
            known = {*spec.options.model_fields, "lr", "weight_decay"}
            if first["type"] == "extra_forbidden":
                text = f"the optimizer {self.name!r} takes no option {option!r}"
                fix = did_you_mean(option, known)
            else:
                text, fix = (
                    f"{option} is {first['input']!r}: {first['msg']}",
                    "see torch.optim for its meaning",
                )
            raise PydanticCustomError("option", "{text}", {"text": text, "fix": fix}) from None
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The optimizer's own options."""
        return dict(self.model_extra or {})


class ScheduleSettings(Settings):
    """How the learning rate moves."""

    name: str = "one_cycle"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of all steps
    floor: Share = 0.0  # least factor on the base rate

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name("schedule", name)


class EarlyStopping(Settings):
    """Stop when the validation loss has not improved; the best weights are restored."""

    patience: Annotated[int, Field(ge=1)] = 3  # epochs


class Distillation(Settings):
    """Learn from the outputs of a teacher beside the labels: Hinton et al., 2015, section 2."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.9  # of the teacher; the rest is the labels'
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    teacher: str | None = None  # a candidate of the profile; None: the float model
    features: Annotated[float, Field(ge=0)] = 0.0  # weight of matched activation maps; 0 matches none
    layers: tuple[str, ...] = ()  # where features are matched; none: the last convolution of every resolution


class FitSettings(Settings):
    """One run of the loop."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 128
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    label_smoothing: Share = 0.0
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # taken from the training split
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _stopping_needs_validation(self) -> Self:
        if self.early_stopping is not None and self.validation_share == 0:
            raise ValueError("early_stopping watches the validation loss; set validation_share above 0")
        return self
