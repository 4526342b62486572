"""Remove channels."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.hardware import HardwareProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec


class PruneConfig(Settings):
    """What to remove."""

    method: Literal["channel"] = "channel"
    ratio: Annotated[float, Field(gt=0, lt=1)]  # share of the channels of every group


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """Widths follow the device."""
    return hardware.pruning.to_json()


SPEC: Final = StageSpec(
    name="prune",
    version=1,
    summary="remove channels, widths rounded to what the device likes",
    config=PruneConfig,
    run="hwopt.stages.prune.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT})},
    produces={"checkpoint": Kind.CHECKPOINT, "cuts": Kind.TABLE},
    facet=facet,
    libraries=("torch", "torch-pruning"),
)
