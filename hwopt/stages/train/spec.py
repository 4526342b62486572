"""Train a network from scratch."""

from __future__ import annotations

from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.stage import StageSpec
from hwopt.training.settings import FitSettings


class TrainConfig(FitSettings):
    """The profile's ``train`` section."""


SPEC: Final = StageSpec(
    name="train",
    version=1,
    summary="train a network from scratch",
    config=TrainConfig,
    run="hwopt.stages.train.run:run",
    produces={"checkpoint": Kind.CHECKPOINT, "history": Kind.TABLE},
    libraries=("torch",),
)
