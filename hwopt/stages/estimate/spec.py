"""Analytic cost of an FPGA design."""

from __future__ import annotations

from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON
from hwopt.core.choices import NoOptions
from hwopt.core.hardware import HardwareProfile
from hwopt.core.stage import StageSpec


def facet(hardware: HardwareProfile) -> dict[str, JSON]:
    """The fabric."""
    return {"fpga": hardware.fpga.to_json() if hardware.fpga else None}


SPEC: Final = StageSpec(
    name="estimate",
    version=1,
    summary="fold a network onto an FPGA: cycles, resources, fits or not",
    config=NoOptions,
    run="hwopt.stages.estimate.run:run",
    consumes={"model": frozenset({Kind.ONNX})},
    produces={"layers": Kind.TABLE},
    facet=facet,
    reads_data=False,
    libraries=("onnx",),
)
