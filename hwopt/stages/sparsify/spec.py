"""Set weights to zero while training goes on; shapes stay."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hwopt.core.artifact import Kind
from hwopt.core.stage import StageSpec
from hwopt.training.choices import OptimizerSettings
from hwopt.training.settings import Distillation, FitSettings


class SparsifyConfig(FitSettings):
    """How many zeros, and the training under them."""

    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of all weights that become zero
    pattern: str | None = None  # N:M, for example 2:4: N of M neighbouring input channels stay
    scope: Literal["layer", "network"] = "network"  # of sparsity: every layer alike, or the smallest of all
    ramp: Annotated[float, Field(gt=0, le=1)] = 0.6  # share of the training until all zeros are set
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3)
    distill: Distillation | None = Distillation()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise PydanticCustomError(
                "goal", "sparsify needs either sparsity or pattern", {"fix": "for example sparsity: 0.8"}
            )
        if self.sparsity is not None and self.early_stopping is not None:
            raise PydanticCustomError(
                "early_stopping",
                "early_stopping would bring back weights from before the last zeros were set",
                {"fix": "remove it, or use pattern"},
            )
        if self.pattern is not None:
            ignored = sorted({"scope", "ramp"} & self.model_fields_set)
            if ignored:
                raise PydanticCustomError(
                    "ignored",
                    "a pattern is set at once in every layer, so {names} would be ignored",
                    {"names": ", ".join(ignored), "fix": "remove it"},
                )
            kept, of = self.counts
            if not 0 < kept < of <= 64:
                raise PydanticCustomError(
                    "pattern",
                    "pattern is {given}, expected N:M with 0 < N < M",
                    {"given": repr(self.pattern), "fix": "for example '2:4', in quotes"},
                )
        return self

    @property
    def counts(self) -> tuple[int, int]:
        """N and M; zeros where the text is no pattern."""
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.pattern or "")
        return (int(match[1]), int(match[2])) if match else (0, 0)


SPEC: Final = StageSpec(
    name="sparsify",
    version=2,
    summary="set weights to zero while training: unstructured or N:M",
    config=SparsifyConfig,
    run="hwopt.stages.sparsify.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT},
    wants_source=lambda config: config.distill is not None,
    libraries=("torch",),
    untrained=lambda config: None,
    holds_back=lambda config: config.validation_share,
)
