"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind


def probe() -> Availability:
    """Installed or not."""
    try:
        return Availability(available=True, version=importlib.metadata.version("onnxruntime"))
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            available=False, reason="the package onnxruntime is not installed", fix="pip install onnxruntime"
        )


SPEC: Final = BackendSpec(
    name="onnxruntime",
    title="ONNX Runtime, CPU",
    kinds=frozenset({DeviceKind.CPU}),
    probe="hwopt.backends.onnxruntime.spec:probe",
    load="hwopt.backends.onnxruntime.runtime:load",
    libraries=("onnxruntime",),
)
