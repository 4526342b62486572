"""Take a float ONNX model that has no torch source."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec


class ReadConfig(Settings):
    """Which file; its contents are part of the step's key by their digest."""

    onnx: str
    digest: str = ""  # filled in when the profile is read
    # Inputs that always hold one value, such as a sample rate: they stop being inputs.
    fix: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)


SPEC: Final = StageSpec(
    name="read",
    version=1,
    summary="check a float ONNX model and fold its constants",
    config=ReadConfig,
    run="hwopt.stages.read.run:run",
    produces={"checkpoint": Kind.ONNX},
    reads_data=False,
    libraries=("onnx", "onnxruntime"),
)
