"""The network as it is before training: what it costs does not depend on what it knows."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec


class UntrainedConfig(Settings):
    """Which fresh weights."""

    restart: Annotated[int, Field(ge=0, le=1000)] = 0  # another seed, as of the training that is left out


SPEC: Final = StageSpec(
    name="untrained",
    version=1,
    summary="the network with fresh weights, to see what it costs before it is trained",
    config=UntrainedConfig,
    run="hwopt.stages.untrained.run:run",
    produces={"checkpoint": Kind.CHECKPOINT},
    libraries=("torch",),
)
