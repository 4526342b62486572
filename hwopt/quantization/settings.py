"""What a profile may say about quantization methods; light to import."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.hardware import LayerRule
from hwopt.core.settings import Settings
from hwopt.plugins import did_you_mean, resolve, table


class ObserverSettings(Settings):
    """How calibration turns a tensor's values into a range; ``observer: percentile`` is short for a name."""

    name: str = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None  # of the observer percentile
    share: Annotated[float, Field(gt=0, le=1)] | None = None  # of the newest batch; observer moving_average

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in table("observer"):
            raise PydanticCustomError(
                "unknown_name",
                "unknown observer '{name}'",
                {"name": self.name, "fix": did_you_mean(self.name, table("observer"))},
            )
        takes = inspect.signature(resolve("observer", self.name)).parameters
        for option in self.options:
            if option not in takes:
                raise PydanticCustomError(
                    "option",
                    "the observer '{name}' takes no option '{option}'",
                    {"name": self.name, "option": option, "fix": f"it takes {', '.join(takes) or 'none'}"},
                )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The observer's own options."""
        given = {"percentile": self.percentile, "share": self.share}
        return {name: value for name, value in given.items() if value is not None}


class AdaRoundSettings(Settings):
    """Learned rounding of weights, layer by layer."""

    iterations: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-2
    regularization: Annotated[float, Field(gt=0)] = 0.01  # of rounding that has not decided yet
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of iterations without that term


class OscillationSettings(Settings):
    """What QAT does about weights that jump between two codes."""

    method: Literal["damp", "freeze"] = "damp"
    strength: Annotated[float, Field(gt=0)] = 1e-3  # of damping at the end of training; it grows from nothing
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.02  # jumps a step above which freezing sets in
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.01  # of the running frequency


class MixedSettings(Settings):
    """Mixed precision: which layers get more bits than the scheme gives."""

    raise_to: str = "int8"  # type of the raised weights, or float
    activations: str | None = None  # type of the raised layers' inputs; None keeps the scheme's
    layers: Annotated[float, Field(gt=0, le=1)] | None = 0.2  # greatest share of layers to raise
    bytes: Annotated[int, Field(gt=0)] | None = None  # greatest size of all weights
    # Greatest sum of MACs × weight bits × activation bits, as a multiple of the uniform version's.
    bit_operations: Annotated[float, Field(ge=1)] | None = None
    # Greatest latency as a multiple of the uniform version's; layers are timed on this machine. ONNX models.
    latency: Annotated[float, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=1)] = 256  # that sensitivity is measured on


class PtqSettings(Settings):
    """How to get to integers without training; all of it serves QAT as the starting point too."""

    tune: bool = True  # choose what is not set below, up to bias_correction, by the output's error
    observer: ObserverSettings = ObserverSettings()
    weight_range: Literal["mse", "max"] = "mse"  # scales of least error, or that reach the greatest weight
    equalize: bool = False
    bias_correction: bool = False
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None  # SmoothQuant's alpha
    adaround: AdaRoundSettings | None = None
    mixed: MixedSettings | None = None
    rules: tuple[LayerRule, ...] = ()
