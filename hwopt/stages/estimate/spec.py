"""Analytic cost of an FPGA design."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.fpga import Flow, Layout, misplaced
from hwopt.core.hardware import HardwareProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import StageSpec


class EstimateConfig(Settings):
    """How the network is laid out; what is left out is chosen."""

    layout: Layout = Layout.STREAMING
    flow: Flow = Flow.FINN  # whose rules a streaming unit follows
    frames_per_second: Annotated[float, Field(gt=0)] | None = None  # least resources that reach it
    overlay: str | None = None  # of the device; None is its first
    cores: Annotated[int, Field(ge=1, le=64)] | None = None
    clock_mhz: Annotated[float, Field(gt=0, le=2000)] | None = None  # None is the device's

    @model_validator(mode="after")
    def _of_its_layout(self) -> Self:
        wrong = misplaced(self.layout, self.flow, self.frames_per_second, self.overlay, self.cores)
        if wrong:
            raise ValueError(wrong)
        return self


def check(config: EstimateConfig, hardware: HardwareProfile | None) -> list[tuple[str, str]]:
    """Overlays that the device has not."""
    if hardware is None or hardware.fpga is None or config.layout is not Layout.OVERLAY:
        return []
    known = hardware.fpga.overlays
    if not known:
        return [
            (
                f"the profile {hardware.name} describes no overlay",
                "layout: streaming, or add a section fpga.overlays to the hardware profile",
            )
        ]
    if config.overlay is not None and config.overlay not in known:
        return [(f"{hardware.name} has no overlay {config.overlay!r}", f"choose one of {', '.join(known)}")]
    return []


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """The fabric."""
    return {"fpga": hardware.fpga.to_json() if hardware.fpga else None}


SPEC: Final = StageSpec(
    name="estimate",
    version=2,
    summary="lay a network out on an FPGA: cycles, resources, energy, fits or not",
    config=EstimateConfig,
    run="hwopt.stages.estimate.run:run",
    consumes={"model": frozenset({Kind.ONNX})},
    produces={"layers": Kind.TABLE},
    check=check,
    facet=facet,
    reads_data=False,
    libraries=("onnx", "scipy", "da4ml"),
)
