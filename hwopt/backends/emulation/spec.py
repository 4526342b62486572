"""The arithmetic of an FPGA design; it needs nothing but NumPy and torch."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind

NAME: Final = "fpga-emulation"


def probe() -> Availability:
    """Always here."""
    return Availability(available=True, version=importlib.metadata.version("hwopt"))


SPEC: Final = BackendSpec(
    name=NAME,
    title="FPGA arithmetic, emulated",
    kinds=frozenset({DeviceKind.FPGA}),
    probe="hwopt.backends.emulation.spec:probe",
    load="hwopt.backends.emulation.runtime:load",
    libraries=("torch",),
)
