"""What a profile may say about training; shared by the stages that train."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.settings import Settings
from hwopt.training.choices import (
    GroupSettings,
    OptimizerSettings,
    ScheduleSettings,
    Share,
    problem,
)
from hwopt.training.optimizers import Stepping


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


class Augmentation(Settings):
    """Random changes of training images, another one for each image and epoch."""

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees to either side
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of height and width, to either side
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0  # factors between 1 - zoom and 1 + zoom
    flip: Literal["none", "horizontal", "vertical", "both"] = "none"  # each with a chance of one half
    crop: Annotated[int, Field(ge=0, le=1024)] = 0  # pixels: pad by so many on each side, cut a window out


class Averaging(Settings):
    """Ship the average of the weights along the way instead of the last ones."""

    kind: Literal["ema", "swa"] = "ema"
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999  # of ema, a step
    start: Annotated[float, Field(ge=0, lt=1)] = 0.75  # of swa: share of the steps before it begins

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        other = "start" if self.kind == "ema" else "decay"
        if other in self.model_fields_set:
            raise problem("ignored", f"{other} does not serve {self.kind}", f"remove {other}")
        return self


class FitSettings(Settings):
    """One run of the loop."""

    finds_rate: ClassVar[bool] = False  # whether lr: auto is resolved before the loop

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    max_steps: Annotated[int, Field(ge=1)] | None = None  # ends sooner; the schedule knows
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["full"] = 128
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1  # parts that a batch is computed in
    optimizer: OptimizerSettings = OptimizerSettings()
    groups: tuple[GroupSettings, ...] = ()
    schedule: ScheduleSettings = ScheduleSettings()
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = (
        "fp32"  # of the arithmetic; weights are saved as fp32
    )
    loss_scaling: bool = True  # of fp16
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0  # of all gradients together
    clip_value: Annotated[float, Field(gt=0)] | None = None  # of every single one
    max_weight: Annotated[float, Field(gt=0)] | None = None  # matrices are clipped to ± this after each step
    l1: Annotated[float, Field(ge=0)] = 0.0  # matrices: l1 · sum |w| beside the loss
    l2: Annotated[float, Field(ge=0)] = (
        0.0  # matrices: l2 / 2 · sum w² beside the loss, whatever the optimizer
    )
    label_smoothing: Share = 0.0
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0  # alpha of its Beta distribution; 0 mixes none
    augment: Augmentation | None = None
    average: Averaging | None = None
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # taken from the training split
    early_stopping: EarlyStopping | None = None
    halvings: Annotated[int, Field(ge=0, le=10)] = 2  # of the rate, from the last good state, on divergence
    watch: bool = True  # gradients, dead units, loss spikes, readiness for int8

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.validation_share == 0:
            if self.early_stopping is not None:
                raise problem(
                    "validation", "early_stopping watches the validation loss", "set validation_share above 0"
                )
            if self.schedule.spec.needs_validation:
                raise problem(
                    "validation",
                    f"the schedule {self.schedule.name} watches the validation loss",
                    "set validation_share above 0",
                )
        if self.precision == "fp16" and not self.loss_scaling:
            raise problem(
                "fp16",
                "fp16 without loss_scaling loses small gradients: they become zero",
                "leave loss_scaling on, or use precision: bf16",
            )
        spec = self.optimizer.spec
        if spec.schedule_free and self.schedule.name != "constant":
            raise problem(
                "schedule",
                f"{self.optimizer.name} brings its own schedule; {self.schedule.name} would work against it",
                "set schedule: {name: constant}, with a warmup if you like",
            )
        if not spec.groups and (self.groups or self.precision == "fp16"):
            raise problem(
                "groups",
                f"{self.optimizer.name} takes neither parameter groups nor fp16",
                "remove groups and precision, or choose another optimizer",
            )
        if spec.stepping is not Stepping.PLAIN and any(g.optimizer for g in self.groups):
            raise problem(
                "groups",
                f"{self.optimizer.name} asks for gradients in its own step, which others cannot share",
                "choose another optimizer beside the groups' own",
            )
        for group in self.groups:
            inner = group.optimizer.spec if group.optimizer else None
            if inner and (inner.stepping is not Stepping.PLAIN or not inner.groups):
                raise problem("groups", f"{group.layers}: {inner.reference} works alone only", "use another")
        if self.precision == "fp16" and (spec.create_graph or any(g.optimizer for g in self.groups)):
            raise problem(
                "fp16",
                "fp16 scales one loss for one optimizer, without second derivatives",
                "use precision: bf16",
            )
        if spec.stepping is Stepping.CLOSURE and {"clip_norm", "clip_value"} & self.model_fields_set:
            raise problem(
                "clip",
                f"the line search of {self.optimizer.name} needs gradients that are not clipped",
                "remove it",
            )
        if spec.schedule_free and (self.average is not None or self.max_weight is not None):
            raise problem(
                "schedule_free",
                f"{self.optimizer.name} averages its weights itself: average and max_weight would not reach them",
                "remove them",
            )
        if self.average is not None and self.average.kind == "swa" and self.early_stopping is not None:
            raise problem(
                "average",
                "early_stopping may end the training before swa has begun",
                "use ema, or remove one of them",
            )
        autos = [g.layers for g in self.groups if g.optimizer is not None and g.optimizer.lr == "auto"]
        if autos or (self.optimizer.lr == "auto" and not self.finds_rate):
            raise problem(
                "auto",
                "lr: auto serves the optimizer of the section train only",
                "give a number, or leave it out",
            )
        if spec.stepping is Stepping.TWICE and self.precision == "fp16":
            raise problem("fp16", f"{self.optimizer.name} cannot scale the loss", "use precision: bf16")
        if self.batch_size != "full" and self.accumulate > self.batch_size:
            raise problem(
                "accumulate",
                f"a batch of {self.batch_size} has no {self.accumulate} parts",
                "lower accumulate",
            )
        return self


def without_a_teacher(settings: FitSettings, distill: Any) -> None:
    """A teacher's answers are those to the samples as they are.

    Raises:
        PydanticCustomError: augmentation or mixup beside distillation.
    """
    for name in ("augment", "mixup"):
        if distill is not None and getattr(settings, name):
            raise problem(
                "distill",
                f"{name} changes the samples, and the teacher has answered the unchanged ones",
                f"remove {name}, or set distill: null",
            )
