"""Train a network."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.stage import StageSpec
from hwopt.training.settings import FitSettings


class TrainConfig(FitSettings):
    """The profile's ``train`` section."""

    finds_rate: ClassVar[bool] = True
    init: Literal["default", "he", "xavier", "orthogonal"] = (
        "default"  # of matrices; default: the layers' own
    )
    # Another start: other first weights, another order of samples, the same split.
    restart: Annotated[int, Field(ge=0, le=1000)] = 0


SPEC: Final = StageSpec(
    name="train",
    version=2,
    summary="train a network",
    config=TrainConfig,
    run="hwopt.stages.train.run:run",
    produces={"checkpoint": Kind.CHECKPOINT, "history": Kind.TABLE, "vocabulary": Kind.TABLE},
    libraries=("torch",),
)
