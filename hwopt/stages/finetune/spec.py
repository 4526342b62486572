"""Train a network further."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.stage import StageSpec
from hwopt.training.choices import OptimizerSettings
from hwopt.training.settings import Distillation, FitSettings


class FinetuneConfig(FitSettings):
    """As ``train``, with a gentler start and a teacher."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 2
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3)
    distill: Distillation | None = Distillation()  # from the float model; null learns from labels alone


SPEC: Final = StageSpec(
    name="finetune",
    version=3,
    summary="train a network further, from labels and a teacher",
    config=FinetuneConfig,
    run="hwopt.stages.finetune.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT},
    wants_source=lambda config: config.distill is not None,
    libraries=("torch",),
    untrained=lambda config: None,
    holds_back=lambda config: config.validation_share,
)
