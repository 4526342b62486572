"""What can be known of the TensorRT backend without TensorRT; the contract runs where it is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hwopt.backends.tensorrt import spec
from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Recipe
from hwopt.errors import StageFailedError
from hwopt.testing.runtime import RuntimeContract


@pytest.mark.needs_runtime("tensorrt")
class TestTensorRt(RuntimeContract):
    device = "nvidia-l4"

    @pytest.fixture
    def load(self) -> LoadFunction:
        function: LoadFunction = importlib.import_module("hwopt.backends.tensorrt.runtime").load
        return function


def test_probe_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(spec, "_NVIDIA_DEVICE", tmp_path / "absent")
    monkeypatch.setattr(spec, "_WSL_DEVICE", tmp_path / "absent")
    state = spec.probe()
    assert (state.available, "GPU" in str(state.reason)) == (False, True)
    (tmp_path / "gpu").touch()
    monkeypatch.setattr(spec, "_NVIDIA_DEVICE", tmp_path / "gpu")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(spec.importlib.util, "find_spec", lambda name: None)
    state = spec.probe()
    assert (state.available, state.fix) == (False, "pip install 'hwopt[tensorrt]'")
    assert "tensorrt" in str(state.reason)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runtime module over stand-ins that know only the names it imports."""
    if spec.probe().available:
        pytest.skip("the real library is here; the contract suite covers this")
    cudart = ModuleType("cuda.bindings.runtime")
    cudart.cudaError_t = SimpleNamespace(cudaSuccess=0)  # type: ignore[attr-defined]
    cudart.cudaGetErrorString = lambda status: (0, b"out of memory")  # type: ignore[attr-defined]
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = cudart  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    monkeypatch.delitem(sys.modules, "hwopt.backends.tensorrt.runtime", raising=False)
    yield importlib.import_module("hwopt.backends.tensorrt.runtime")
    sys.modules.pop("hwopt.backends.tensorrt.runtime", None)


@pytest.mark.parametrize("field", ["Format/Datatype", "Datatype", "DataType"])
def test_inspector_schemas(runtime: Any, field: str) -> None:
    layer = {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{field: "Int8 NC/32HW32"}]}
    node = runtime.precision_of(layer)
    assert (node.name, node.integer, node.weighted) == ("conv1", True, True)
    assert not runtime.precision_of({**layer, "Inputs": [{field: "Half"}]}).integer
    assert not runtime.precision_of({**layer, "LayerType": "Reformat"}).weighted


def test_another_gpu_is_not_passed_off_as_the_target(runtime: Any) -> None:
    properties = SimpleNamespace(major=9, minor=0)
    runtime.cudart.cudaGetDeviceProperties = lambda index: (0, properties)
    with pytest.raises(StageFailedError, match=r"GPU here is cc9\.0, nvidia-l4 is cc8\.9"):
        runtime.load(Path("m.onnx"), Recipe(), shipped("nvidia-l4"))


def test_cuda_errors_are_ours(runtime: Any) -> None:
    assert runtime.cuda((0, 7)) == 7
    with pytest.raises(StageFailedError, match="out of memory"):
        runtime.cuda((2, None))
