"""Float ONNX models without a torch source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwopt.config.hardware import shipped
from hwopt.core.hardware import LayerRule, Mode, QuantizationScheme
from hwopt.errors import ConfigError, StageFailedError
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.assign import Role
from hwopt.quantization.layer_time import layer_times
from hwopt.quantization.onnx_export import write
from hwopt.quantization.onnx_net import OnnxNet, read
from hwopt.quantization.onnx_ptq import QuantizedOnnx, quantize_onnx
from hwopt.quantization.settings import MixedSettings, PtqSettings
from hwopt.testing.models import SAMPLE_SHAPE, images, tiny_net
from tests.quantization.nets import Lambda, float_onnx, onnx_model, plain_cnn, run_onnx

GENERIC = shipped("generic-cpu").quantization
PLAIN = PtqSettings(tune=False)


def scheme(mode: str = "static", **weights: Any) -> QuantizationScheme:
    changed = GENERIC.weights.model_copy(update={"range": None, **weights}) if weights else GENERIC.weights
    return GENERIC.model_copy(update={"mode": Mode(mode), "weights": changed})


def calls(x: np.ndarray, size: int = 16, name: str = "input") -> list[dict[str, np.ndarray]]:
    return [{name: x[i : i + size]} for i in range(0, len(x), size)]


def written(made: QuantizedOnnx, folder: Path) -> Path:
    path = folder / "q.onnx"
    write(made.model, path, {})
    return path


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, whatever ran before it."""
    np.random.seed(0)


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape).astype(np.float32)


def test_static_has_the_same_scales_and_codes_as_the_torch_twin(tmp_path: Path) -> None:
    """One rule set, one calibration: the two roads lead to the same model."""
    from hwopt.quantization.insert import deployed
    from hwopt.quantization.onnx_export import export_onnx
    from hwopt.quantization.ptq import quantize_module

    x = images()
    source = read(float_onnx(tiny_net(), SAMPLE_SHAPE, tmp_path / "f.onnx"))
    made = quantize_onnx(source, GENERIC, calls(x.numpy(), 64), PLAIN)
    twin = quantize_module(tiny_net(), SAMPLE_SHAPE, GENERIC, x, PLAIN)
    export_onnx(deployed(twin.graph), SAMPLE_SHAPE, tmp_path / "t.onnx", {})
    other = onnx.load(tmp_path / "t.onnx")
    for graph in (made.model.graph, other.graph):
        assert [n.op_type for n in graph.node].count("QuantizeLinear") == 8

    def codes(model: onnx.ModelProto) -> list[np.ndarray]:
        arrays = [
            numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == TensorProto.INT8
        ]
        return sorted((a for a in arrays if a.ndim > 1), key=lambda a: a.size)

    for a, b in zip(codes(made.model), codes(other), strict=True):
        # Batch norm is folded in float32 by ONNX Runtime and in float64 here: a code may differ by one.
        assert np.abs(a.astype(int) - b.reshape(a.shape).astype(int)).max() <= 1
    exact = run_onnx(source, {"input": x.numpy()})[0]
    assert sqnr_db(exact, run_onnx(written(made, tmp_path), {"input": x.numpy()})[0]) > 25


def test_dynamic_axes_and_names_are_kept(tmp_path: Path) -> None:
    source = read(float_onnx(tiny_net(), SAMPLE_SHAPE, tmp_path / "f.onnx"))
    made = quantize_onnx(source, GENERIC, calls(images().numpy()), PLAIN)
    path = written(made, tmp_path)
    assert [i.name for i in made.model.graph.input] == ["input"]
    assert [o.name for o in made.model.graph.output] == ["logits"]
    for batch in (1, 7):
        assert run_onnx(path, {"input": images(batch).numpy()})[0].shape == (batch, 4)


@pytest.mark.parametrize(
    ("mode", "weights", "limit", "operator"),
    [
        ("dynamic", {}, 30.0, "MatMulInteger"),
        ("weight_only", {"dtype": "int8"}, 40.0, "DequantizeLinear"),
        ("weight_only", {"dtype": "int4", "block": 16}, 15.0, "DequantizeLinear"),
    ],
)
def test_products_without_calibration(
    mode: str, weights: dict[str, Any], limit: float, operator: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48)).eval()
    source = read(float_onnx(net, (32,), tmp_path / "f.onnx"))
    made = quantize_onnx(source, scheme(mode, **weights), [])
    path = written(made, tmp_path)
    x = normal(20, 32)
    assert sqnr_db(run_onnx(source, {"input": x})[0], run_onnx(path, {"input": x})[0]) > limit
    assert operator in operators(made.model)
    stored = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    bits = 4 if weights.get("dtype") == "int4" else 8
    assert path.stat().st_size < stored * bits / 8 + 4 * stored / weights.get("block", 32) + 4000
    if bits == 4:
        kinds = {i.data_type for i in made.model.graph.initializer}
        assert TensorProto.INT4 in kinds
        assert next(o.version for o in made.model.opset_import if o.domain == "") >= 21


def test_blocks_that_do_not_fit_fall_back_to_channels_and_say_so(tmp_path: Path) -> None:
    source = read(float_onnx(nn.Linear(20, 8).eval(), (20,), tmp_path / "f.onnx"))
    made = quantize_onnx(source, scheme("weight_only", dtype="int4", block=16), [])
    (decision,) = [d for d in made.table.decisions if d.role is Role.WEIGHT]
    assert decision.scheme is not None
    assert decision.scheme.block is None
    assert "do not divide into blocks" in decision.rule


def test_lstm_in_integer_where_the_runtime_has_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Lambda(lambda m, x: m.h(m.r(x)[0][:, -1]), r=nn.LSTM(8, 16, batch_first=True), h=nn.Linear(16, 4))
    source = read(float_onnx(net, (6, 8), tmp_path / "f.onnx"))
    assert "LSTM" in operators(source)
    made = quantize_onnx(source, scheme("dynamic"), [])
    assert "DynamicQuantizeLSTM" in operators(made.model)
    x = normal(8, 6, 8)
    path = written(made, tmp_path)
    assert sqnr_db(run_onnx(source, {"input": x})[0], run_onnx(path, {"input": x})[0]) > 25
    static = quantize_onnx(source, GENERIC, calls(x), PLAIN)
    assert any(d.operator == "LSTM" and d.scheme is None for d in static.table.decisions)


def branch_model() -> onnx.ModelProto:
    """A convolution whose output a branch reads as well; the branch depends on the input ``flag``."""
    inner = helper.make_graph(
        [helper.make_node("ReduceMean", ["r"], ["a"], keepdims=0)],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [])],
    )
    other = helper.make_graph(
        [helper.make_node("ReduceMax", ["r"], ["b"], keepdims=0)],
        "else",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [])],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w", "c"], ["y"], "conv"),
        helper.make_node("Relu", ["y"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["out"], "pool"),
        helper.make_node("If", ["flag"], ["z"], "if", then_branch=inner, else_branch=other),
    ]
    model = onnx_model(nodes, {"w": normal(4, 2, 3, 3), "c": normal(4)}, ["n", 2, 8, 8], ["out", "z"])
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return model


def test_branches_read_the_quantized_tensor(tmp_path: Path) -> None:
    path = tmp_path / "f.onnx"
    onnx.save(branch_model(), path)
    source = read(path)
    x = normal(4, 2, 8, 8)
    batches = [{"x": x, "flag": np.asarray(flag)} for flag in (True, False)]
    made = quantize_onnx(source, GENERIC, batches, PLAIN)
    out = tmp_path / "q.onnx"
    write(made.model, out, {})
    for batch in batches:
        for a, b in zip(run_onnx(source, batch), run_onnx(out, batch), strict=True):
            np.testing.assert_allclose(b, a, atol=0.02 * float(np.abs(a).max()))


def test_a_fixed_input_takes_its_branches_along(tmp_path: Path) -> None:
    path = tmp_path / "f.onnx"
    onnx.save(branch_model(), path)
    fixed = read(path, {"flag": 1})
    assert [i.name for i in fixed.graph.input] == ["x"]
    assert "If" not in operators(fixed)
    with pytest.raises(ConfigError, match=r"no input 'rate'"):
        read(path, {"rate": 1})


def test_outputs_in_the_middle_keep_their_names(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v"], ["z"], "b"),
    ]
    weights = {"w": normal(4, 2, 3, 3), "v": normal(3, 4, 1, 1)}
    path = tmp_path / "f.onnx"
    onnx.save(onnx_model(nodes, weights, ["n", 2, 8, 8], ["r", "z"]), path)
    source, x = read(path), normal(8, 2, 8, 8)
    made = quantize_onnx(source, GENERIC, calls(x, name="x"), PLAIN)
    for a, b in zip(run_onnx(source, {"x": x}), run_onnx(written(made, tmp_path), {"x": x}), strict=True):
        assert sqnr_db(a, b) > 30


def test_one_weight_in_two_layers_of_which_one_stays_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "first"),
        helper.make_node("Relu", ["y"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["z"], "second"),
    ]
    path = tmp_path / "f.onnx"
    onnx.save(onnx_model(nodes, {"w": normal(8, 8)}, ["n", 8], ["z"]), path)
    source, x = read(path), normal(32, 8)
    keep = PtqSettings(tune=False, rules=(LayerRule(layers="second", keep_float=True),))
    made = quantize_onnx(source, GENERIC, calls(x, name="x"), keep)
    stored = {i.name for i in made.model.graph.initializer}
    assert {"w", "w_codes"} <= stored
    assert sqnr_db(run_onnx(source, {"x": x})[0], run_onnx(written(made, tmp_path), {"x": x})[0]) > 30


def test_arithmetic_among_float_operators_stays_float(tmp_path: Path) -> None:
    """A magnitude behind a convolution: squares in eight bits would lose all small values."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
        helper.make_node("Mul", ["y", "y"], ["s"], "square"),
        helper.make_node("Sqrt", ["s"], ["t"], "root"),
        helper.make_node("Add", ["t", "t"], ["z"], "twice"),
    ]
    path = tmp_path / "f.onnx"
    onnx.save(onnx_model(nodes, {"w": normal(4, 2, 3, 3)}, ["n", 2, 8, 8], ["z"]), path)
    made = quantize_onnx(read(path), GENERIC, calls(normal(16, 2, 8, 8), name="x"), PLAIN)
    left = {d.node: d.rule for d in made.table.decisions if d.scheme is None}
    assert {"square", "twice"} <= set(left)
    assert "neighbours are in float" in left["twice"]


def test_biases_with_a_leading_axis_run_in_integer(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["z"], "gemm")]
    path = tmp_path / "f.onnx"
    onnx.save(onnx_model(nodes, {"w": normal(8, 4), "c": normal(1, 4)}, ["n", 8], ["z"]), path)
    source, x = read(path), normal(32, 8)
    made = quantize_onnx(source, GENERIC, calls(x, name="x"), PLAIN)
    assert [d.role for d in made.table.decisions].count(Role.BIAS) == 1
    assert sqnr_db(run_onnx(source, {"x": x})[0], run_onnx(written(made, tmp_path), {"x": x})[0]) > 30


def test_mixed_precision_keeps_the_worst_layer_in_float(tmp_path: Path) -> None:
    net = plain_cnn(16)
    with torch.no_grad():
        net[4].weight[:, 0] *= 100
    source = read(float_onnx(net, SAMPLE_SHAPE, tmp_path / "f.onnx"))
    x = images(64).numpy()
    low = scheme(dtype="int3")
    settings = PtqSettings(tune=False, mixed=MixedSettings(raise_to="float", layers=0.25))
    made = quantize_onnx(source, low, calls(x), settings)
    plain = quantize_onnx(source, low, calls(x), PLAIN)
    exact = run_onnx(source, {"input": x})[0]

    def reached(q: QuantizedOnnx) -> float:
        return sqnr_db(exact, run_onnx(q.model, {"input": x}, optimized=False)[0])

    assert len(made.settings.rules) == 1
    assert reached(made) > reached(plain) + 1
    sensitivity = made.facts["sensitivity"]
    assert isinstance(sensitivity, list)
    assert len(sensitivity) == 4


def test_a_latency_budget_is_made_of_timed_layers(tmp_path: Path) -> None:
    source = read(float_onnx(plain_cnn(16), SAMPLE_SHAPE, tmp_path / "f.onnx"))
    x = images(64).numpy()
    layers = [("0.weight", "Conv"), ("2.weight", "Conv"), ("4.weight", "Conv"), ("8.weight", "Gemm")]
    times, whole = layer_times(source, {"input": x[:1]}, layers)
    with pytest.raises(StageFailedError, match="executes 3 Conv"):
        layer_times(source, {"input": x[:1]}, layers[1:])
    assert set(times) == {"0.weight", "2.weight", "4.weight", "8.weight"}
    assert 0 < sum(times.values()) <= whole
    mixed = MixedSettings(raise_to="float", layers=0.5, latency=1e6)
    free = quantize_onnx(source, GENERIC, calls(x), PtqSettings(tune=False, mixed=mixed))
    assert len(free.settings.rules) == 2  # time is no object, so the other limit decides
    with pytest.raises(ConfigError, match="about integer and float"):
        quantize_onnx(source, scheme(dtype="int4"), calls(x), PtqSettings(mixed=MixedSettings(latency=1.5)))


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "empty"),
        ([{"input": np.ones((4, *SAMPLE_SHAPE), np.float32)}], "single value"),
        ([{"input": np.full((4, *SAMPLE_SHAPE), np.nan, np.float32)}], "NaN"),
        ([{"input": np.ones((4, 3), np.float32)}], "do not fit the model"),
        ([{"image": np.ones((4, *SAMPLE_SHAPE), np.float32)}], "do not fit the model"),
    ],
)
def test_bad_calibration(batches: list[dict[str, np.ndarray]], says: str, tmp_path: Path) -> None:
    source = read(float_onnx(tiny_net(), SAMPLE_SHAPE, tmp_path / "f.onnx"))
    for settings in (PLAIN, PtqSettings()):
        with pytest.raises(ConfigError, match=says):
            quantize_onnx(source, GENERIC, batches, settings)


def test_models_that_cannot_be_quantized(tmp_path: Path) -> None:
    source = float_onnx(tiny_net(), SAMPLE_SHAPE, tmp_path / "f.onnx")
    done = quantize_onnx(read(source), GENERIC, calls(images().numpy()), PLAIN)
    with pytest.raises(ConfigError, match="quantized already"):
        read(written(done, tmp_path))
    bare = tmp_path / "bare.onnx"
    onnx.save(onnx_model([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 3], ["y"]), bare)
    for mode in ("static", "dynamic"):
        with pytest.raises(StageFailedError, match="nothing in this model"):
            quantize_onnx(read(bare), scheme(mode), calls(normal(4, 3), name="x"), PLAIN)


def test_view_reads_what_an_operator_is() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "c"], ["y"], "conv", group=2),
        helper.make_node("Clip", ["y", "low", "high"], ["k"], "clip"),
        helper.make_node("Reshape", ["k", "shape"], ["f"], "reshape"),
        helper.make_node("Gemm", ["f", "g"], ["h"], "scaled", alpha=2.0),
        helper.make_node("MatMul", ["m", "f"], ["o"], "left"),
    ]
    weights = {
        "w": normal(4, 1, 3, 3),
        "c": normal(4),
        "low": np.float32(0),
        "high": np.float32(6),
        "shape": np.asarray([4, -1]),
        "g": normal(4, 4),
        "m": normal(4, 4),
    }
    net = OnnxNet(onnx.shape_inference.infer_shapes(onnx_model(nodes, weights, [1, 2, 3, 3], ["h", "o"])))
    by_name = {op.name: op for op in net.ops}
    conv = by_name["conv"]
    assert (conv.kind, conv.weight, conv.bias, conv.axis, conv.groups) == ("Conv", "w", "c", 0, 2)
    assert by_name["clip"].bounds == (0.0, 6.0)
    assert by_name["reshape"].inputs == ("k",)
    assert by_name["scaled"].kind is None  # a factor that no integer kernel applies
    assert by_name["left"].kind is None  # a constant on the left
    assert by_name["left"].parameters == ("m",)
