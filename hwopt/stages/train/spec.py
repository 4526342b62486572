"""Train a network."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from hwopt.core.artifact import Kind
from hwopt.core.stage import StageSpec
from hwopt.training.settings import FitSettings


class TrainConfig(FitSettings):
    """The profile's ``train`` section."""

    finds_rate: ClassVar[bool] = True
    init: Literal["default", "he", "xavier", "orthogonal"] = (
        "default"  # of matrices; default: the layers' own
    )


SPEC: Final = StageSpec(
    name="train",
    version=2,
    summary="train a network",
    config=TrainConfig,
    run="hwopt.stages.train.run:run",
    produces={"checkpoint": Kind.CHECKPOINT, "history": Kind.TABLE, "vocabulary": Kind.TABLE},
    libraries=("torch",),
)
