"""The gate without a GPU: what the compiler takes and what it refuses, row by row of the design's table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwopt
from hwopt.backends.tensorrt_rtx import spec
from hwopt.config.hardware import shipped
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.testing.models import float_model, quantized_model

gate = pytest.mark.needs_runtime("tensorrt-rtx")
RNG_SHAPE = (8, 3, 3, 3)


def file(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    stored: Sequence[onnx.TensorProto],
    shape: Sequence[Any] = ("n", 3, 16, 16),
    dtype: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, None)],
        list(stored),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def array(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def convolution(folder: Path, dtype: Any = np.float32) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], "fc"),
    ]
    stored = [array("w", random(*RNG_SHAPE), dtype), array("v", random(8, 10), dtype)]
    return file(folder, nodes, stored, dtype=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def integers(folder: Path, dtype: Any = np.float32, zero: Any = 0, activations: Any = np.int8) -> Path:
    """Q/DQ around a convolution; weights int8 by channel, symmetric."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q_x"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dq_x"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "dq_w", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    stored = [
        array("xs", 0.02, dtype),
        array("xz", zero, activations),
        array("wq", np.clip(random(*RNG_SHAPE) * 40, -127, 127), np.int8),
        array("ws", np.full(8, 0.02), dtype),
        array("wz", np.zeros(8), np.int8),
    ]
    return file(folder, nodes, stored, dtype=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def eight_bit_floats(folder: Path) -> Path:
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q_x"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq_x"),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], "q_w"),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], "dq_w"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], "fc"),
    ]
    return file(folder, nodes, [zero, array("s", 0.5), array("w", random(32, 16))], shape=(4, 32))


def four_bit_weights(folder: Path) -> Path:
    packed = np.random.default_rng(0).integers(0, 256, 64 * 32 // 2, dtype=np.uint8).tobytes()
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"], "dq_w", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "wd"], ["y"], "fc"),
    ]
    stored = [
        helper.make_tensor("wq", TensorProto.INT4, [64, 32], packed, raw=True),
        array("ws", np.full((2, 32), 0.1), np.float16),
    ]
    return file(folder, nodes, stored, shape=(4, 64), dtype=TensorProto.FLOAT16)


def dynamic(folder: Path) -> Path:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], "dql"),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["i"], "mmi"),
        helper.make_node("Cast", ["i"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "xs"], ["y"], "scale"),
    ]
    return file(folder, nodes, [array("w", random(32, 16) * 40, np.int8)], shape=(4, 32))


def compiled(path: Path, target: str) -> dict[str, Any]:
    found = hwopt.check(path, target=target)
    assert found["tier"] == "compiled"
    assert "latency_ms" not in found
    return found


def both(folder: Path, *isa: str) -> str:
    """A device file that names several compute capabilities."""
    profile = shipped("nvidia-l4").model_copy(update={"name": "several", "isa": isa})
    path = folder / "several.yaml"
    import yaml

    path.write_text(yaml.safe_dump(HardwareProfile.model_validate(profile).to_json()))
    return str(path)


@gate
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("isa", [("cc8.9",), ("cc12.0",), ("cc8.0", "cc8.9")])
def test_row_1_floats_with_a_free_batch(tmp_path: Path, dtype: Any, isa: tuple[str, ...]) -> None:
    found = compiled(convolution(tmp_path, dtype), both(tmp_path, *isa))
    assert found["accepted"]
    assert found["engine_bytes"] > 0


@gate
@pytest.mark.parametrize("target", ["nvidia-l4", "nvidia-t4", "nvidia-a100"])
def test_row_2_int8_by_channel(tmp_path: Path, target: str) -> None:
    assert compiled(integers(tmp_path), target)["accepted"]


@gate
def test_row_3_int8_in_a_float16_model(tmp_path: Path) -> None:
    found = compiled(integers(tmp_path, np.float16), "nvidia-l4")
    assert found["accepted"]
    assert any("scales to fp32" in note for note in found["notes"])


@gate
def test_row_4_and_5_fp8_needs_a_device_that_has_it(tmp_path: Path) -> None:
    path = eight_bit_floats(tmp_path)
    assert compiled(path, "nvidia-l4")["accepted"]
    found = compiled(path, both(tmp_path, "cc8.0", "cc8.9"))
    assert not found["accepted"]
    assert found["reasons"][0]["text"] == "several (cc8.0) has no fp8_e4m3 arithmetic"


@gate
def test_row_6_int4_weights(tmp_path: Path) -> None:
    path = four_bit_weights(tmp_path)
    assert compiled(path, "nvidia-l4")["accepted"]
    (reason,) = compiled(path, "nvidia-t4")["reasons"]
    assert reason["text"] == "nvidia-t4 (cc7.5) has no int4 arithmetic"


@gate
@pytest.mark.parametrize(("zero", "dtype"), [(128, np.uint8), (3, np.int8)])
def test_row_7_zero_points(tmp_path: Path, zero: int, dtype: Any) -> None:
    (reason,) = compiled(integers(tmp_path, zero=zero, activations=dtype), "nvidia-l4")["reasons"]
    assert "q_x" in reason["text"]
    assert "zero point other than 0" in reason["text"]
    assert "hwopt quantize" in reason["fix"]


@gate
def test_row_7_unsigned_codes_would_be_cut_silently(tmp_path: Path) -> None:
    found = compiled(integers(tmp_path, zero=0, activations=np.uint8), "nvidia-l4")
    assert not found["accepted"]
    assert "read that as int8" in found["reasons"][0]["text"]


@gate
def test_row_8_dynamic_quantization(tmp_path: Path) -> None:
    texts = [reason["text"] for reason in compiled(dynamic(tmp_path), "nvidia-l4")["reasons"]]
    assert ["dql" in texts[0], "mmi" in texts[1]] == [True, True]
    assert all("quantizes as the model runs" in text for text in texts)


@gate
def test_row_9_an_operator_without_a_kernel(tmp_path: Path) -> None:
    path = file(tmp_path, [helper.make_node("Det", ["x"], ["y"], "det")], [], shape=(2, 3, 3))
    (reason,) = compiled(path, "nvidia-l4")["reasons"]
    assert reason["text"] == "the compiler has no kernel for Det det (operator)"


@gate
def test_what_the_compiler_does_not_serve_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"builds no engines for nvidia-h200 \(cc9\.0\)"):
        hwopt.check(convolution(tmp_path), target="nvidia-h200")
    free = file(tmp_path, [helper.make_node("Relu", ["x"], ["y"], "r")], [], shape=("n", 3, "h", "w"))
    with pytest.raises(ConfigError, match="only the first axis may be free"):
        hwopt.check(free, target="nvidia-l4")


@gate
def test_our_own_quantization_for_gpus_compiles(tmp_path: Path) -> None:
    assert compiled(quantized_model(tmp_path, "nvidia-l4")[0], "nvidia-l4")["accepted"]
    found = compiled(quantized_model(tmp_path, "x86-avx512-vnni")[0], "nvidia-l4")
    assert not found["accepted"]  # made for a CPU: zero points, int32 biases


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise spec.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(spec.importlib.metadata, "version", absent)
    state = spec.probe()
    assert (state.available, "hwopt[rtx]" in str(state.fix)) == (False, True)
    monkeypatch.setattr("hwopt.api.check.probe", lambda name: state)
    with pytest.raises(EngineMissingError, match="tensorrt-rtx-cu13-bindings is not installed"):
        hwopt.check(float_model(tmp_path)[0], target="nvidia-l4")


def test_a_sound_file_and_a_cpu(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "generic-cpu")
    found = hwopt.check(path)
    assert (found["accepted"], found["inputs"]) == (None, {"input": ["float32", [None, 1, 8, 8]]})
    here = hwopt.check(path, target="host-cpu")
    assert here["accepted"]
    assert here["runtimes"]["onnxruntime"] == {"accepted": True, "integer_share": 1.0}
    assert "tensorrt_rtx_bindings" not in sys.modules or spec.probe().available
