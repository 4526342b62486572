"""What can be known of the TensorRT backend without TensorRT; the contract runs on it where it is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hwopt.backends.tensorrt import spec
from hwopt.config.hardware import shipped
from hwopt.core.backend import LoadFunction, Recipe
from hwopt.errors import StageFailedError
from hwopt.testing.models import float_model
from hwopt.testing.runtime import RuntimeContract
from tests.backends.tensorrt_double import Double

MODULES = ("hwopt.backends.tensorrt.runtime", "hwopt.backends.tensorrt.engine")


@pytest.mark.needs_runtime("tensorrt")
class TestTensorRt(RuntimeContract):
    device = "nvidia-l4"

    @pytest.fixture
    def load(self) -> LoadFunction:
        function: LoadFunction = importlib.import_module(MODULES[0]).load
        return function


@pytest.fixture(params=[10, 11])
def double(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Double]:
    if spec.probe().available:
        pytest.skip("the real library is here; the contract suite covers this")
    made = Double(request.param)
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = made.cudart  # type: ignore[attr-defined]
    for name, module in (
        ("tensorrt", made.trt),
        ("cuda", ModuleType("cuda")),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", made.cudart),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield made
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def runtime(double: Double) -> Any:
    return importlib.import_module(MODULES[0])


class TestDouble(RuntimeContract):
    """The contract over the double: it proves the flow of calls, not TensorRT."""

    device = "nvidia-l4"

    @pytest.fixture
    def load(self, runtime: Any) -> LoadFunction:
        function: LoadFunction = runtime.load
        return function


def test_graphs_are_captured_once_a_shape_and_memory_is_freed(
    double: Double, runtime: Any, tmp_path: Path
) -> None:
    path, reference = float_model(tmp_path)
    loaded = runtime.load(path, Recipe(), shipped("nvidia-l4"))
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.random((1, 1, 8, 8), dtype=np.float32)
        np.testing.assert_allclose(loaded.run({"input": x})[0], reference(x), atol=1e-5)
    assert double.calls == ["build", "enqueue", "launch", "launch"]
    assert loaded.describe()["cuda_graph"] is True
    many = rng.random((100, 1, 8, 8), dtype=np.float32)  # more than the first engine takes
    for _ in range(2):
        np.testing.assert_allclose(loaded.run({"input": many})[0], reference(many), atol=1e-5)
    assert loaded.describe()["tuned_for_batch"] == 100
    assert double.calls[4:] == ["build", "enqueue", "launch"]
    (time,) = loaded.profile({"input": x}, 4)
    assert (time.name, time.seconds) == ("conv", pytest.approx(5e-4))
    loaded.close()
    assert (double.memory, double.graphs) == ({}, 0)


def test_another_type_or_shape_is_refused_before_it_is_copied(runtime: Any, tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    loaded = runtime.load(path, Recipe(), shipped("nvidia-l4"))
    for given, says in (
        ({"input": np.ones((1, 1, 8, 8))}, "input is float32, and float64 was given"),
        ({"x": np.ones((1, 1, 8, 8), np.float32)}, "the model takes input, and x was given"),
        ({"input": np.ones((1, 1, 9, 8), np.float32)}, r"does not take \[1, 1, 9, 8\]"),
    ):
        with pytest.raises(StageFailedError, match=says):
            loaded.run(given)


def test_a_cache_of_another_gpu_is_replaced(double: Double, runtime: Any, tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    runtime.load(path, Recipe(), shipped("nvidia-l4"))
    (kept,) = (tmp_path / "cache" / "hwopt").iterdir()
    kept.write_bytes(b"of another GPU")
    double.cache_fits = False
    found = runtime.load(path, Recipe(), shipped("nvidia-l4")).describe()
    assert (found["timing_cache_bytes"], kept.read_bytes()) == (0, b"timed")


def test_a_model_that_cannot_be_captured_runs_and_says_so(
    double: Double, runtime: Any, tmp_path: Path
) -> None:
    double.capture_works = False
    path, reference = float_model(tmp_path)
    loaded = runtime.load(path, Recipe(), shipped("nvidia-l4"))
    x = np.ones((1, 1, 8, 8), np.float32)
    for _ in range(2):
        np.testing.assert_allclose(loaded.run({"input": x})[0], reference(x), atol=1e-5)
    assert "launch" not in double.calls
    assert loaded.describe()["cuda_graph"] is False


def test_kernel_timings_are_kept_between_builds(double: Double, runtime: Any, tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    first, second = (runtime.load(path, Recipe(), shipped("nvidia-l4")).describe() for _ in range(2))
    assert (first["timing_cache_bytes"], second["timing_cache_bytes"]) == (0, 5)
    (kept,) = (tmp_path / "cache" / "hwopt").iterdir()
    assert kept.name == f"tensorrt-{double.version}.0.0-NVIDIA-L4-cc8.9.timing"


def test_a_refused_operator_is_named(runtime: Any, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], "det")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "det.onnx"
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )
    with pytest.raises(StageFailedError, match=r"does not take det\.onnx: UNSUPPORTED_NODE Det det\n"):
        runtime.load(path, Recipe(), shipped("nvidia-l4"))


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


@pytest.mark.parametrize(
    "tensor",
    [
        {"Format/Datatype": "Int8 NC/32HW32"},
        {"Format": "NC/32HW32", "Datatype": "Int8"},
        {"Format": "NC/32HW32", "DataType": "Int8"},
    ],
)
def test_inspector_schemas(runtime: Any, tensor: dict[str, str]) -> None:
    layer = {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [tensor]}
    node = runtime.precision_of(layer)
    assert (node.name, node.integer, node.weighted) == ("conv1", True, True)
    half = {key: value.replace("Int8", "Half") for key, value in tensor.items()}
    assert not runtime.precision_of({**layer, "Inputs": [half]}).integer
    assert not runtime.precision_of({**layer, "LayerType": "Reformat"}).weighted


def test_another_gpu_is_not_passed_off_as_the_target(runtime: Any) -> None:
    with pytest.raises(StageFailedError, match=r"GPU here is cc8\.9, nvidia-a100 is cc8\.0"):
        runtime.load(Path("m.onnx"), Recipe(), shipped("nvidia-a100"))


def test_cuda_errors_are_ours(runtime: Any) -> None:
    assert runtime.cuda((0, 7)) == 7
    with pytest.raises(StageFailedError, match="out of memory"):
        runtime.cuda((2, None))
