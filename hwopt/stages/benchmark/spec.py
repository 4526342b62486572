"""Latency, paired with the float model."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, which_device


class BenchmarkConfig(Settings):
    """The execution recipe and the effort; the profile's ``benchmark`` section."""

    runtime: str | None = None  # None: the first of the device's runtimes that is here
    batch: Annotated[int, Field(ge=1, le=65536)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    budget_seconds: Annotated[float, Field(gt=0, le=3600)] = 6.0  # of timed pairs, for each candidate
    half_width: Annotated[float, Field(gt=0, lt=1)] = 0.01  # of the ratio's interval, where to stop


SPEC: Final = StageSpec(
    name="benchmark",
    version=2,
    summary="latency, and speed-up over the float model by interleaved pairs",
    config=BenchmarkConfig,
    run="hwopt.stages.benchmark.run:run",
    consumes={"model": frozenset({Kind.ONNX}), "baseline": frozenset({Kind.ONNX})},
    produces={"samples": Kind.TABLE},
    facet=which_device,
    measured=True,
    libraries=("onnxruntime",),
)
