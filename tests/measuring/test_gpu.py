"""NVML through a double that knows its names, and machines without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hwopt.measuring import gpu


class NvmlError(Exception):
    pass


class NotFoundError(NvmlError):
    pass


class NotSupportedError(NvmlError):
    pass


def nvml(**changes: Any) -> ModuleType:
    module = ModuleType("pynvml")
    members: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVMLError_FunctionNotFound": NotFoundError,
        "NVMLError_NotSupported": NotSupportedError,
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: "handle",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (8, 9),
        "nvmlDeviceGetName": lambda handle: "NVIDIA L4",
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 4 | 32 | 1,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 8,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 5000,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 2040, 2: 6250}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 60,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 72000,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=n) for n in (7, 8)],
    }
    for name, value in (members | changes).items():
        setattr(module, name, value)
    return module


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "nvidiactl"
    path.touch()
    monkeypatch.setattr(gpu, "_DEVICES", (path,))


def test_no_gpu_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_DEVICES", (tmp_path / "absent",))
    assert gpu.first_gpu() == gpu.gpu_state() == gpu.NO_GPU


def test_what_it_is_and_how_it_does(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found, state = gpu.first_gpu(), gpu.gpu_state(own=[7])
    assert isinstance(found, gpu.Gpu)
    assert (found.title, found.isa) == ("NVIDIA L4, driver 580.1", "cc8.9")
    assert isinstance(state, gpu.GpuState)
    assert (state.slowed_by, state.joules, state.sm_mhz) == (("power cap", "thermal (software)"), 5.0, 2040)
    assert (state.other_processes, len(state.warnings())) == (1, 2)


def test_old_drivers_and_old_gpus(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(handle: Any) -> int:
        raise NotFoundError

    def unsupported(handle: Any) -> int:
        raise NotSupportedError

    changed = nvml(
        nvmlDeviceGetCurrentClocksEventReasons=missing,
        nvmlDeviceGetTotalEnergyConsumption=unsupported,
        nvmlDeviceGetEnforcedPowerLimit=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", changed)
    state = gpu.gpu_state()
    assert isinstance(state, gpu.GpuState)
    assert (state.slowed_by, state.joules, state.power_limit_watts) == (("hardware slowdown",), None, None)
    assert state.sm_mhz == 2040


def test_a_missing_package_or_driver_is_said(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in str(gpu.first_gpu())
    assert gpu.fix_for(str(gpu.first_gpu())) == "pip install 'hwopt[gpu]'"

    def absent() -> None:
        raise NvmlError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=absent))
    assert "Shared Library" in str(gpu.gpu_state())
