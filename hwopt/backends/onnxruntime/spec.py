"""ONNX Runtime's CPU and CUDA execution providers."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind
from hwopt.measuring.gpu import first_gpu, fix_for


def probe() -> Availability:
    """Installed or not."""
    for package in ("onnxruntime", "onnxruntime-gpu"):  # the latter brings the CPU provider too
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Availability(available=True, version=importlib.metadata.version(package))
    return Availability(
        available=False, reason="the package onnxruntime is not installed", fix="pip install onnxruntime"
    )


def probe_cuda() -> Availability:
    """A GPU, its driver, and the package that replaces onnxruntime."""
    gpu = first_gpu()
    if isinstance(gpu, str):
        return Availability(available=False, reason=gpu, fix=fix_for(gpu))
    try:
        version = importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            available=False,
            reason="the package onnxruntime-gpu is not installed",
            fix="pip uninstall onnxruntime && pip install onnxruntime-gpu (256 MB; CUDA 13 since 1.27)",
        )
    return Availability(available=True, version=version, device=gpu.title, isa=gpu.isa)


SPEC: Final = BackendSpec(
    name="onnxruntime",
    title="ONNX Runtime, CPU",
    kinds=frozenset({DeviceKind.CPU}),
    probe="hwopt.backends.onnxruntime.spec:probe",
    load="hwopt.backends.onnxruntime.runtime:load",
    libraries=("onnxruntime",),
)
CUDA: Final = BackendSpec(
    name="onnxruntime-cuda",
    title="ONNX Runtime, CUDA",
    kinds=frozenset({DeviceKind.GPU}),
    probe="hwopt.backends.onnxruntime.spec:probe_cuda",
    load="hwopt.backends.onnxruntime.runtime:load_cuda",
    libraries=("onnxruntime-gpu",),
)
