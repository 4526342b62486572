"""An NVIDIA GPU as its management library (NVML) sees it; nothing is changed, and no CUDA context is made.

Untested on a GPU: no machine with one has run this yet (see docs/results/README.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hwopt.core.canonical import JSON

_DEVICES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # the driver's, and that of WSL
NO_GPU: Final = "no NVIDIA GPU (or no driver) on this machine"
# nvmlClocksEventReasons of nvml.h; idling and the clocks an administrator chose disturb nothing.
_REASONS: Final = {
    4: "power cap",
    8: "hardware slowdown",
    16: "sync boost",
    32: "thermal (software)",
    64: "thermal (hardware)",
    128: "power brake",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What it is, which does not change while it is measured."""

    name: str
    driver: str
    isa: str  # compute capability in the words of hardware profiles

    @property
    def title(self) -> str:
        """Name with driver, for the keys of measured steps."""
        return f"{self.name}, driver {self.driver}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """How it is doing at one moment."""

    sm_mhz: int | None  # None, here and below, where this GPU or driver does not tell
    memory_mhz: int | None
    celsius: int | None
    power_limit_watts: float | None
    slowed_by: tuple[str, ...]
    other_processes: int | None
    joules: float | None  # since the driver was loaded

    def warnings(self) -> list[str]:
        """What makes a measurement doubtful."""
        found = [f"the GPU runs below its clock: {', '.join(self.slowed_by)}"] if self.slowed_by else []
        if self.other_processes:
            found.append(f"{self.other_processes} other processes compute on the GPU")
        return found

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return values | {"slowed_by": list[JSON](self.slowed_by), "warnings": list[JSON](self.warnings())}


def fix_for(reason: str) -> str:
    """What mends a reason that ``first_gpu`` gave."""
    if reason == NO_GPU:
        return "run on a machine with an NVIDIA GPU and its driver"
    return "pip install 'hwopt[gpu]'" if "nvidia-ml-py" in reason else "mend or update the NVIDIA driver"


def first_gpu() -> Gpu | str:
    """The first GPU, or in one sentence why there is none to see."""
    if not any(path.exists() for path in _DEVICES):
        return NO_GPU
    found: Gpu | str = _ask(_describe)
    return found


def gpu_state(own: Collection[int] = ()) -> GpuState | str:
    """Clocks, temperature, and what slows the first GPU down, or why they cannot be read.

    Args:
        own: process ids that are ours.
    """
    if not any(path.exists() for path in _DEVICES):
        return NO_GPU
    found: GpuState | str = _ask(lambda nvml, handle: _state(nvml, handle, own))
    return found


def _ask(question: Callable[[Any, Any], Any]) -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"the driver does not answer: {error}"
    try:
        return question(nvml, nvml.nvmlDeviceGetHandleByIndex(0))
    except nvml.NVMLError as error:
        return f"the driver does not answer: {error}"
    finally:
        nvml.nvmlShutdown()


def _describe(nvml: Any, handle: Any) -> Gpu:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        isa=f"cc{major}.{minor}",
    )


def _state(nvml: Any, handle: Any, own: Collection[int]) -> GpuState:
    def told(name: str, *arguments: Any) -> Any:
        """None where a driver or GPU has no such figure: Jetson, WSL and slices of a GPU lack some."""
        try:
            return getattr(nvml, name)(handle, *arguments)
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported):
            return None

    reasons = told("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # drivers before 535
        reasons = told("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    joules, watts = told("nvmlDeviceGetTotalEnergyConsumption"), told("nvmlDeviceGetEnforcedPowerLimit")
    running = told("nvmlDeviceGetComputeRunningProcesses")
    return GpuState(
        sm_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        celsius=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        power_limit_watts=None if watts is None else watts / 1e3,
        slowed_by=tuple(name for bit, name in _REASONS.items() if reasons & bit),
        other_processes=None if running is None else sum(one.pid not in own for one in running),
        joules=None if joules is None else joules / 1e3,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
