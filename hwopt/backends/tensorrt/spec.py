"""TensorRT 10.12 and later, 11 included."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind

_NVIDIA_DEVICE: Final = Path("/dev/nvidiactl")
_WSL_DEVICE: Final = Path("/dev/dxg")


def probe() -> Availability:
    """Library, CUDA bindings and a GPU, in that order; the first that is missing is named."""
    if not (_NVIDIA_DEVICE.exists() or _WSL_DEVICE.exists()):
        return Availability(
            available=False,
            reason="no NVIDIA GPU (or no driver) on this machine",
            fix="run on a machine with the GPU and its driver, then pip install 'hwopt[tensorrt]'",
        )
    for module, package in (("tensorrt", "tensorrt"), ("cuda", "cuda-python")):
        if importlib.util.find_spec(module) is None:
            return Availability(
                available=False,
                reason=f"the package {package} is not installed",
                fix="pip install 'hwopt[tensorrt]'",
            )
    device, isa = _device()
    return Availability(available=True, version=_version(), device=device, isa=isa)


def _device() -> tuple[str, str]:
    """Name with driver, and compute capability, of the first GPU. Untested: see docs/results/README.md."""
    cudart = importlib.import_module("cuda.bindings.runtime")
    _, properties = cudart.cudaGetDeviceProperties(0)
    _, driver = cudart.cudaDriverGetVersion()
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return f"{name}, driver {driver}", f"cc{properties.major}.{properties.minor}"


def _version() -> str | None:
    try:
        return importlib.metadata.version("tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return None  # installed by other means than pip


SPEC: Final = BackendSpec(
    name="tensorrt",
    title="NVIDIA TensorRT",
    kinds=frozenset({DeviceKind.GPU}),
    probe="hwopt.backends.tensorrt.spec:probe",
    load="hwopt.backends.tensorrt.runtime:load",
    libraries=("tensorrt",),
)
