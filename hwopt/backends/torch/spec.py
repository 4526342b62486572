"""torch eager, compiled, and on a GPU; they run checkpoints of hwopt, not ONNX files."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind
from hwopt.measuring.gpu import first_gpu, fix_for

_CHECKPOINTS: Final = frozenset({Kind.CHECKPOINT, Kind.QUANTIZED_CHECKPOINT})


def probe() -> Availability:
    """Installed or not."""
    try:
        return Availability(available=True, version=importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        return Availability(
            available=False, reason="the package torch is not installed", fix="pip install torch"
        )


def probe_compile() -> Availability:
    """torch, and the compiler that its generated C++ goes through."""
    state = probe()
    compilers = ("cl",) if platform.system() == "Windows" else ("g++", "clang++", "c++")
    if state.available and not any(shutil.which(name) for name in compilers):
        return Availability(
            available=False,
            reason="torch.compile needs a C++ compiler, and there is none",
            fix="install g++ (apt install g++) or clang",
        )
    return state


def probe_cuda() -> Availability:
    """torch with CUDA, and a GPU."""
    gpu = first_gpu()
    if isinstance(gpu, str):
        return Availability(available=False, reason=gpu, fix=fix_for(gpu))
    state = probe()
    if not state.available:
        return state
    if "+cpu" in (state.version or "") or platform.system() == "Darwin":
        return Availability(
            available=False,
            reason="this torch is built without CUDA",
            fix="pip install torch from an index with CUDA builds: pytorch.org/get-started",
        )
    return Availability(available=True, version=state.version, device=gpu.title, isa=gpu.isa)


EAGER: Final = BackendSpec(
    name="torch",
    title="torch, eager, CPU",
    kinds=frozenset({DeviceKind.CPU}),
    probe="hwopt.backends.torch.spec:probe",
    load="hwopt.backends.torch.runtime:load",
    libraries=("torch",),
    takes=_CHECKPOINTS,
)
COMPILED: Final = BackendSpec(
    name="torch-compile",
    title="torch.compile, CPU",
    kinds=frozenset({DeviceKind.CPU}),
    probe="hwopt.backends.torch.spec:probe_compile",
    load="hwopt.backends.torch.runtime:load_compiled",
    libraries=("torch",),
    takes=_CHECKPOINTS,
)
CUDA: Final = BackendSpec(
    name="torch-cuda",
    title="torch with CUDA graphs",
    kinds=frozenset({DeviceKind.GPU}),
    probe="hwopt.backends.torch.spec:probe_cuda",
    load="hwopt.backends.torch.runtime:load_cuda",
    libraries=("torch",),
    takes=_CHECKPOINTS,
)
