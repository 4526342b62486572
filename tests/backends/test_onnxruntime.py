from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwopt.backends.onnxruntime import runtime as backend
from hwopt.backends.onnxruntime import spec
from hwopt.backends.onnxruntime.runtime import load as load_onnxruntime
from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Recipe
from hwopt.errors import StageFailedError
from hwopt.testing.models import float_model
from hwopt.testing.runtime import RuntimeContract


@pytest.mark.needs_runtime("onnxruntime")
class TestOnnxRuntime(RuntimeContract):
    @pytest.fixture
    def load(self) -> LoadFunction:
        return load_onnxruntime


@pytest.mark.needs_runtime("onnxruntime-cuda")
class TestCuda(RuntimeContract):
    device = "nvidia-l4"
    integer = False  # its CUDA provider runs Q/DQ convolutions in float

    @pytest.fixture
    def load(self) -> LoadFunction:
        return backend.load_cuda


def test_a_fall_back_to_the_cpu_is_no_gpu_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the CUDA libraries ONNX Runtime warns and runs on the CPU; we do not."""
    path, _ = float_model(tmp_path)
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    asked: list[Any] = []

    def opened(model: Path, options: Any, provider: str) -> Any:
        asked.append(provider)
        return session

    monkeypatch.setattr(backend, "_session", opened)
    with pytest.raises(
        StageFailedError, match="with CPUExecutionProvider, and CUDAExecutionProvider was asked for"
    ):
        backend.load_cuda(path, Recipe(), shipped("nvidia-l4"))
    assert asked == ["CUDAExecutionProvider"]


def test_cuda_probe_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "first_gpu", lambda: "no NVIDIA GPU")
    assert spec.probe_cuda().reason == "no NVIDIA GPU"
    gpu = SimpleNamespace(title="NVIDIA L4, driver 1", isa="cc8.9")
    monkeypatch.setattr(spec, "first_gpu", lambda: gpu)

    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            raise spec.importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(spec.importlib.metadata, "version", version)
    state = spec.probe_cuda()
    assert (state.available, "onnxruntime-gpu" in str(state.reason)) == (False, True)
    monkeypatch.setattr(spec.importlib.metadata, "version", lambda name: "1.31")
    state = spec.probe_cuda()
    assert (state.available, state.isa, state.device) == (True, "cc8.9", "NVIDIA L4, driver 1")
