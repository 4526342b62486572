"""What a file promises, whether it is well formed, and how it behaves off the beaten track."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, which_device


class InspectConfig(Settings):
    """The profile's ``inspect`` section."""

    runtime: str | None = None  # filled in by the planner; None where no runtime executes the design
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    spinning: bool = False
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 32  # the greatest that is tried
    soak_seconds: Annotated[float, Field(ge=0, le=86400)] = (
        0.0  # of running without a pause; 600 is the usual
    )


SPEC: Final = StageSpec(
    name="inspect",
    version=1,
    summary="contract, conformance, robustness, roofline",
    config=InspectConfig,
    run="hwopt.stages.inspect.run:run",
    consumes={"model": frozenset({Kind.ONNX})},
    produces={"report": Kind.TABLE},
    facet=which_device,
    measured=True,
    libraries=("onnx", "onnxruntime"),
)
