"""The optimizer, its parameter groups and the schedule, as a profile names them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.canonical import canonical_json
from hwopt.core.settings import Settings
from hwopt.plugins import did_you_mean, resolve, table
from hwopt.training.optimizers import Decay, OptimizerSpec
from hwopt.training.schedules import ScheduleSpec

Rate = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
_CLASS: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def problem(kind: str, text: str, fix: str) -> PydanticCustomError:
    """A validation error with its fix."""
    return PydanticCustomError(kind, "{text}", {"text": text, "fix": fix})


def known_name(kind: str, name: str) -> str:
    """``name`` if a registry has it, else an error with the nearest name."""
    if name not in table(kind):
        raise problem("unknown_name", f"unknown {kind} '{name}'", did_you_mean(name, table(kind)))
    return name


def check_options(
    kind: str, name: str, options: type[Settings], given: Mapping[str, Any], also: set[str]
) -> Settings:
    """Options of a registry entry; the first that it does not take, or takes otherwise, is the error."""
    try:
        return options.model_validate_json(canonical_json(dict(given)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = {*options.model_fields, *also}
            raise problem(
                "option", f"the {kind} {name!r} takes no option {option!r}", did_you_mean(option, known)
            ) from None
        raise problem(
            "option", f"{option} is {first['input']!r}: {first['msg']}", f"see docs/training.md, {kind}s"
        ) from None


class OptimizerSettings(Settings):
    """An optimizer by name, or any class as ``module:Class``; other options are its own."""

    model_config = ConfigDict(extra="allow")

    name: str = "adamw"
    lr: Rate | Literal["auto"] | None = None  # None: the default of the optimizer; auto: a range test
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = None  # on matrices only; None: 1e-4
    base: str | None = None  # of a wrapper such as sam: the optimizer inside

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if _CLASS.fullmatch(name) else known_name("optimizer", name)

    @model_validator(mode="after")
    def _takes_options(self) -> Self:
        spec = self.spec
        if spec.options is not None:
            check_options("optimizer", self.name, spec.options, self.options, {"lr", "weight_decay"})
        if self.weight_decay and spec.decay is Decay.NONE:
            raise problem(
                "decay", f"the optimizer {self.name!r} knows no weight_decay", "use l2, or weight_decay: 0"
            )
        if self.base is not None and spec.base is None:
            raise problem("base", f"the optimizer {self.name!r} wraps no other", "remove base")
        if self.base is not None:
            known_name("optimizer", self.base)
            inner: OptimizerSpec = resolve("optimizer", self.base)
            if inner.base is not None or not inner.groups or inner.switches:
                raise problem("base", f"{self.name} cannot wrap {self.base}", "wrap adamw or momentum")
        return self

    @property
    def spec(self) -> OptimizerSpec:
        """What the registry says; of a class of others nothing is known."""
        if ":" in self.name:
            return OptimizerSpec(reference=self.name, options=None, resumes=False, licence="not known")
        found: OptimizerSpec = resolve("optimizer", self.name)
        return found

    @property
    def options(self) -> dict[str, Any]:
        """The optimizer's own options."""
        return dict(self.model_extra or {})

    @property
    def decay(self) -> float:
        """Of the weights, with the default filled in."""
        if self.spec.decay is Decay.NONE:
            return 0.0
        return 1e-4 if self.weight_decay is None else self.weight_decay

    @property
    def rate(self) -> float:
        """The base rate; that of ``auto`` has to be found first."""
        if self.lr == "auto":
            raise ValueError("lr: auto has not been resolved")
        return self.spec.default_lr if self.lr is None else float(self.lr)


class GroupSettings(Settings):
    """What is different for some parameters; of several groups the first that matches a name counts."""

    layers: str  # regular expression that must match the start of a parameter's name
    lr_scale: Annotated[float, Field(gt=0, le=1000)] | None = None  # times the rate of the optimizer
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = None
    optimizer: OptimizerSettings | None = None  # another one for these
    frozen: bool = False  # not trained; batch norm keeps its statistics

    @field_validator("layers")
    @classmethod
    def _compiles(cls, layers: str) -> str:
        try:
            re.compile(layers)
        except re.error as error:
            raise problem(
                "regex", f"layers is no regular expression: {error}", 'for example "features"'
            ) from None
        return layers

    @model_validator(mode="after")
    def _frozen_is_all(self) -> Self:
        if self.frozen and (self.lr_scale or self.weight_decay or self.optimizer):
            raise problem("frozen", "a frozen group is not trained", "remove its other settings")
        return self


class ScheduleSettings(Settings):
    """How the learning rate moves; other options are the schedule's own."""

    model_config = ConfigDict(extra="allow")

    name: str = "one_cycle"
    warmup: Annotated[float, Field(ge=0, lt=1)] | Annotated[int, Field(ge=1)] = 0.0  # share, or steps
    floor: Share = 0.0  # what the schedule ends at, as a factor on the base rate

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name("schedule", name)

    @model_validator(mode="after")
    def _takes_options(self) -> Self:
        spec = self.spec
        check_options("schedule", self.name, spec.options, self.options, {"warmup", "floor"})
        if self.warmup and spec.starts_low:
            raise problem(
                "warmup", f"{self.name} rises from a low rate by itself", "remove warmup, or choose cosine"
            )
        return self

    @property
    def spec(self) -> ScheduleSpec:
        """What the registry says."""
        found: ScheduleSpec = resolve("schedule", self.name)
        return found

    @property
    def options(self) -> dict[str, Any]:
        """The schedule's own options."""
        return dict(self.model_extra or {})

    @property
    def checked(self) -> Settings:
        """The schedule's own options, as it wants them."""
        return self.spec.options.model_validate_json(canonical_json(self.options))

    def warmup_steps(self, steps: int) -> int:
        """Of a training of ``steps``."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * steps)
