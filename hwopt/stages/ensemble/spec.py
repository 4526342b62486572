"""Several trainings of one network, from different seeds: the best of them, or their average as one model."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec


class EnsembleConfig(Settings):
    """How many, and what becomes of them."""

    members: Annotated[int, Field(ge=2, le=32)] = 3  # the training of the profile, with as many seeds
    take: Literal["best", "average"] = (
        "best"  # average: all of them in one model, which takes as many times as long
    )
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = (
        0.1  # of the training split, to choose and to compare on
    )


SPEC: Final = StageSpec(
    name="ensemble",
    version=1,
    summary="train from several seeds; keep the best, or average all",
    config=EnsembleConfig,
    run="hwopt.stages.ensemble.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT},
    members=lambda config: config.members,
    untrained=lambda config: None if config.take == "best" else config,
    libraries=("torch",),
)
