"""TensorRT for RTX 1.7: builds engines ahead of time on any machine; it is not used to run them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Final

from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind

_FIX: Final = "pip install 'hwopt[rtx]' (NVIDIA's proprietary licence; 95 MB, no GPU needed; Linux)"


def probe() -> Availability:
    """Bindings and libraries; the bindings do not ask pip for the libraries."""
    try:
        version = importlib.metadata.version("tensorrt-rtx-cu13-bindings")
        importlib.metadata.version("tensorrt-rtx-cu13-libs")
    except importlib.metadata.PackageNotFoundError as error:
        return Availability(available=False, reason=f"the package {error.name} is not installed", fix=_FIX)
    return Availability(available=True, version=version)


SPEC: Final = BackendSpec(
    name="tensorrt-rtx",
    title="NVIDIA TensorRT for RTX (compiles only)",
    kinds=frozenset({DeviceKind.GPU}),
    probe="hwopt.backends.tensorrt_rtx.spec:probe",
    load="hwopt.backends.tensorrt_rtx.build:load",
    libraries=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
    takes=frozenset(),
    compiles="hwopt.backends.tensorrt_rtx.build:compile_model",
)
