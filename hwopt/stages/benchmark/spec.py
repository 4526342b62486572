"""Latency, paired with the float model."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from hwopt.core.artifact import Kind
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec, which_device

AUTO: Final = "auto"


class BenchmarkConfig(Settings):
    """The execution recipe and the effort; the profile's ``benchmark`` section."""

    runtime: str | None = None  # None: the first of the device's runtimes that is here; auto: the faster one
    batch: Annotated[int, Field(ge=1, le=65536)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    spinning: bool = False  # busy waiting between calls; it disturbs a shared host
    hint: Literal["latency", "throughput"] = "latency"  # for runtimes that choose by it
    budget_seconds: Annotated[float, Field(gt=0, le=3600)] = 6.0  # of timed rounds, for each candidate
    half_width: Annotated[float, Field(gt=0, lt=1)] = 0.01  # of the ratio's interval, where to stop
    processes: Annotated[int, Field(ge=1, le=16)] = 2  # each with fresh sessions of every model
    rate_hz: Annotated[float, Field(ge=0.1, le=1000)] | None = None  # one call at a time, with pauses between
    throughput_batch: Annotated[int, Field(ge=1, le=65536)] = 32  # for the second choice of runtime: auto
    among: tuple[str, ...] = ()  # the runtimes that ``auto`` chooses from; left out, those that are here

    @model_validator(mode="after")
    def _paced_is_single(self) -> Self:
        if self.rate_hz is not None and self.batch != 1:
            raise ValueError("rate_hz asks for one sample now and then: leave out batch")
        return self


SPEC: Final = StageSpec(
    name="benchmark",
    version=3,
    summary="latency, and speed-up over the float model by interleaved pairs",
    config=BenchmarkConfig,
    run="hwopt.stages.benchmark.run:run",
    consumes={"model": frozenset({Kind.ONNX}), "baseline": frozenset({Kind.ONNX})},
    produces={"samples": Kind.TABLE},
    facet=which_device,
    measured=True,
    libraries=("onnxruntime",),
)
