"""OpenVINO's CPU plug-in."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind


def probe() -> Availability:
    """Installed or not."""
    try:
        return Availability(available=True, version=importlib.metadata.version("openvino"))
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            available=False,
            reason="the package openvino is not installed",
            fix="pip install 'hwopt[openvino]'",
        )


SPEC: Final = BackendSpec(
    name="openvino",
    title="OpenVINO, CPU",
    kinds=frozenset({DeviceKind.CPU}),
    probe="hwopt.backends.openvino.spec:probe",
    load="hwopt.backends.openvino.runtime:load",
    libraries=("openvino",),
)
