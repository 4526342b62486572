"""Write ONNX and prove that it is the network."""

from __future__ import annotations

from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.choices import NoOptions
from hwopt.core.stage import StageSpec

SPEC: Final = StageSpec(
    name="export",
    version=3,
    summary="write ONNX and prove that it computes what the network computes",
    config=NoOptions,
    run="hwopt.stages.export.run:run",
    consumes={"checkpoint": frozenset({Kind.CHECKPOINT, Kind.QUANTIZED_CHECKPOINT, Kind.ONNX})},
    produces={"model": Kind.ONNX, "twin": Kind.PREDICTIONS},
    libraries=("torch", "onnx", "onnxscript", "onnxruntime"),
)
