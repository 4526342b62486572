"""The network as it is before training: what it costs does not depend on what it knows."""

from __future__ import annotations

from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.choices import NoOptions
from hwopt.core.stage import StageSpec

SPEC: Final = StageSpec(
    name="untrained",
    version=1,
    summary="the network with fresh weights, to see what it costs before it is trained",
    config=NoOptions,
    run="hwopt.stages.untrained.run:run",
    produces={"checkpoint": Kind.CHECKPOINT},
    libraries=("torch",),
)
