"""Accuracy of the deployed model."""

from __future__ import annotations

from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.backend import Hint, Optimization
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, which_device


class EvaluateConfig(Settings):
    """Which runtime, and which graph of it; filled in by the planner."""

    runtime: str = "onnxruntime"
    optimization: Optimization = Optimization.ALL
    threads: int = 1
    spinning: bool = False
    hint: Hint = Hint.LATENCY
    allow_float: bool = False  # whether operators that the file asks to run in integer may run in float


SPEC: Final = StageSpec(
    name="evaluate",
    version=6,
    summary="accuracy, agreement with the torch network, executed precision",
    config=EvaluateConfig,
    run="hwopt.stages.evaluate.run:run",
    consumes={
        "model": frozenset({Kind.ONNX}),
        "twin": frozenset({Kind.PREDICTIONS}),
        "float_twin": frozenset({Kind.PREDICTIONS}),
    },
    produces={"nodes": Kind.TABLE, "predictions": Kind.PREDICTIONS},
    facet=which_device,
    measured=True,
    libraries=("onnxruntime",),
)
