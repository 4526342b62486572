"""What is trained is what is shipped: graph, table, twin, ONNX file and runtime agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from hwopt.backends.onnxruntime.runtime import load as load_onnxruntime
from hwopt.config.hardware import shipped
from hwopt.core.backend import Optimization, Recipe
from hwopt.core.hardware import QuantizationScheme
from hwopt.errors import ConfigError, StageFailedError
from hwopt.integer_check import asked_for_integer, float_operators
from hwopt.layer_table import layer_table
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.assign import Role, assign
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import calibrate, deployed, insert
from hwopt.quantization.onnx_export import export_onnx
from hwopt.testing.models import SAMPLE_SHAPE, images, quantized_model, tiny_net
from tests.quantization.nets import Lambda

HOST_SCHEMES = ["x86-avx2", "x86-avx512-vnni", "generic-cpu"]


def scheme_of(device: str) -> QuantizationScheme:
    return shipped(device).quantization


def test_graph_computes_what_the_module_does() -> None:
    net = tiny_net()
    graph = to_graph(net, SAMPLE_SHAPE)
    # Folding batch norm rounds differently: 1e-5 of logits around 1.
    torch.testing.assert_close(graph(images()), net(images()), atol=1e-5, rtol=1e-5)
    operators = {str(node.target) for node in graph.graph.nodes}
    assert not any("batch_norm" in name or "mean" in name for name in operators)
    net.stem[0].weight.data.zero_()
    assert graph(images()).abs().sum() > 0  # it shares no memory with the module


@pytest.mark.parametrize("device", HOST_SCHEMES)
def test_table_names_a_rule_for_every_tensor(device: str) -> None:
    table = assign(FxNet(to_graph(tiny_net(), SAMPLE_SHAPE)), scheme_of(device))
    weights = [d for d in table.decisions if d.role is Role.WEIGHT]
    assert [d.operator for d in weights] == ["Conv", "Conv", "Conv", "Gemm"]
    assert all(d.rule for d in table.decisions)
    assert all(d.axis == 0 for d in weights)
    pool = next(d for d in table.decisions if d.tensor.startswith("max_pool"))
    assert pool.shares == "add"  # max pooling leaves values on their grid


def test_avx2_weights_keep_to_seven_bits(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "x86-avx2")
    stored = [
        numpy_helper.to_array(i)
        for i in onnx.load(path).graph.initializer
        if i.data_type == onnx.TensorProto.INT8
    ]
    codes = [c for c in stored if c.ndim > 1]
    assert len(codes) == 4
    assert min(int(c.min()) for c in codes) >= -64
    assert max(int(c.max()) for c in codes) <= 63
    assert max(int(np.abs(c).max()) for c in codes) >= 60  # and they use the range


@pytest.mark.parametrize("device", [*HOST_SCHEMES, "zcu104", "nvidia-l4"])
def test_file_as_written_is_the_twin(device: str, tmp_path: Path) -> None:
    path, twin = quantized_model(tmp_path, device)
    runtime = load_onnxruntime(path, Recipe(optimization=Optimization.NONE), shipped("generic-cpu"))
    x = images(200, seed=5).numpy()
    (logits,) = runtime.run({"input": x})
    expected = twin(x)
    assert np.mean(logits.argmax(1) == expected.argmax(1)) == 1.0
    # Float sums in another order may move a value over a code's edge: a few samples, one step.
    assert np.mean(np.abs(logits - expected).max(axis=1) > 1e-4) <= 0.05


def test_tensorrt_scheme_quantizes_inputs_of_weighted_operators_only(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "nvidia-l4")
    graph = onnx.load(path).graph
    readers = {name: node for node in graph.node for name in node.input}
    constants = {i.name: i for i in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 4
    for node in quantizers:
        assert not numpy_helper.to_array(constants[node.input[2]]).any()  # zero point 0
        assert readers[readers[node.output[0]].output[0]].op_type in {"Conv", "Gemm"}
    assert not any(i.data_type == onnx.TensorProto.INT32 for i in graph.initializer)  # biases stay float


def test_scales_are_not_shared_between_nodes(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "x86-avx2")
    used = [
        name
        for node in onnx.load(path).graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        for name in node.input[1:]
    ]
    assert len(used) == len(set(used))


def test_file_holds_no_trace_of_this_machine(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "x86-avx2")
    content = path.read_bytes()
    assert str(Path(__file__).parent.parent.parent).encode() not in content
    assert b"site-packages" not in content


def test_bits_are_read_from_the_file(tmp_path: Path) -> None:
    scheme = scheme_of("zcu104")
    narrow = scheme.model_copy(
        update={
            "weights": scheme.weights.with_dtype("int4"),
            "activations": scheme.activations.with_dtype("int4"),
        }
    )
    path, _ = quantized_model(tmp_path, narrow)
    weighted = [layer for layer in layer_table(path) if layer.macs]
    assert {layer.weight_bits for layer in weighted} == {4}
    assert {layer.activation_bits for layer in weighted} == {4}
    full, _ = quantized_model(tmp_path, "zcu104")
    assert {layer.activation_bits for layer in layer_table(full) if layer.macs} == {8}


def test_calibration_set_empty_constant_or_nan() -> None:
    graph = to_graph(tiny_net(), SAMPLE_SHAPE)
    insert(graph, scheme_of("x86-avx2"))
    with pytest.raises(ConfigError, match="empty"):
        calibrate(graph, [])
    with pytest.raises(ConfigError, match="single value"):
        calibrate(graph, [torch.ones(4, *SAMPLE_SHAPE)])
    with pytest.raises((ConfigError, ValueError), match="NaN"):
        calibrate(graph, [torch.full((4, *SAMPLE_SHAPE), float("nan"))])


def test_untraceable_model_is_a_clear_error() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(StageFailedError, match="cannot trace"):
        to_graph(Branch(), (4,))


class CalledTwice(nn.Module):
    """One convolution, called twice on inputs of different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.stem(x)) * 1.0))
        x = torch.relu(self.again(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_biases_survive_channels_without_weights() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    with torch.no_grad():
        net[0].weight[0] = 0.0
        net[0].weight[1] *= 1e-9
        net[0].bias.fill_(1.0)
    for device in ("x86-avx2", "zcu104"):
        graph = to_graph(net, SAMPLE_SHAPE)
        insert(graph, scheme_of(device))
        calibrate(graph, [images()])
        with torch.no_grad():
            assert sqnr_db(net(images()).numpy(), graph(images()).numpy()) > 25


@pytest.mark.parametrize("device", [*HOST_SCHEMES, "zcu104", "nvidia-l4"])
def test_twin_is_close_to_the_float_net(device: str) -> None:
    net = tiny_net()
    graph = to_graph(net, SAMPLE_SHAPE)
    insert(graph, scheme_of(device))
    calibrate(graph, [images()])
    with torch.no_grad():
        assert sqnr_db(net(images()).numpy(), graph(images()).numpy()) > 25  # 8 bits, four layers


def test_weights_behind_a_view_are_weights() -> None:
    net = Lambda(lambda m, x: x @ m.a.weight.transpose(0, 1), a=nn.Linear(6, 4, bias=False))
    graph = to_graph(net, (6,))
    table = insert(graph, scheme_of("zcu104"))
    assert [d.operator for d in table.decisions if d.role is Role.WEIGHT] == ["MatMul"]
    x = torch.randn(64, 6)
    calibrate(graph, [x])
    with torch.no_grad():
        assert sqnr_db(net(x).numpy(), graph(x).numpy()) > 25


def test_a_layer_called_twice_has_a_bias_scale_for_each_call(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = to_graph(CalledTwice(), SAMPLE_SHAPE)
    table = insert(graph, scheme_of("x86-avx2"))
    assert [d.role for d in table.decisions].count(Role.WEIGHT) == 3
    assert [d.role for d in table.decisions].count(Role.BIAS) == 4
    calibrate(graph, [images()])
    path = tmp_path / "m.onnx"
    export_onnx(deployed(graph), SAMPLE_SHAPE, path, {})
    runtime = load_onnxruntime(path, Recipe(), shipped("generic-cpu"))
    assert all(node.integer for node in runtime.executed() if node.weighted)
    reference = load_onnxruntime(path, Recipe(optimization=Optimization.NONE), shipped("generic-cpu"))
    with torch.no_grad():
        twin = graph(images()).numpy()
    np.testing.assert_allclose(reference.run({"input": images().numpy()})[0], twin, atol=1e-4)


def attention(m: Any, x: Tensor) -> Tensor:
    scores = torch.softmax(m.q(x) @ m.k(x).transpose(1, 2), -1)
    return m.head((scores @ m.v(x)).mean(1))  # type: ignore[no-any-return]


# name: sample shape, network, weighted operators, those of them that run in integer on a CPU
USERS = {
    "conv1d": ((3, 16), Lambda(lambda m, x: m.h(torch.relu(m.c(x)).mean(2)), c=nn.Conv1d(3, 8, 3), h=nn.Linear(8, 4)), 2, 2),
    "transposed": ((3, 8, 8), Lambda(lambda m, x: m.h(torch.relu(m.b(m.c(x))).mean((2, 3))), c=nn.ConvTranspose2d(3, 8, 2, 2), b=nn.BatchNorm2d(8), h=nn.Linear(8, 4)), 2, 1),
    "sequence": ((6, 10), Lambda(lambda m, x: m.h(torch.relu(m.c(x)).mean(1)), c=nn.Linear(10, 8), h=nn.Linear(8, 4)), 2, 2),
    "attention": ((6, 8), Lambda(attention, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), head=nn.Linear(8, 4)), 6, 6),
    "concat": ((3, 8, 8), Lambda(lambda m, x: m.h(torch.cat([torch.relu(m.a(x)), torch.sigmoid(m.b(x))], 1).mean((2, 3))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), h=nn.Linear(16, 4)), 3, 3),
    "squeeze-excite": ((8, 8, 8), Lambda(lambda m, x: m.h((x * torch.sigmoid(m.a(nn.functional.adaptive_avg_pool2d(x, 1)))).mean((2, 3))), a=nn.Conv2d(8, 8, 1), h=nn.Linear(8, 4)), 2, 2),
    "hardswish": ((3, 8, 8), Lambda(lambda m, x: m.h(nn.functional.hardswish(m.a(x)).mean((2, 3))), a=nn.Conv2d(3, 8, 1), h=nn.Linear(8, 4)), 2, 2),
    "view": ((3, 8, 8), Lambda(lambda m, x: m.h(torch.relu(m.a(x)).view(x.size(0), -1)), a=nn.Conv2d(3, 2, 1), h=nn.Linear(128, 4)), 2, 2),
    "ends in a convolution": ((3, 8, 8), Lambda(lambda m, x: m.a(nn.functional.adaptive_avg_pool2d(x, 1)).flatten(1), a=nn.Conv2d(3, 4, 1)), 1, 1),
    "dead ReLU": ((3, 8, 8), Lambda(lambda m, x: m.h(torch.relu(m.a(x) - 1000).mean((2, 3))), a=nn.Conv2d(3, 8, 1), h=nn.Linear(8, 4)), 2, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_networks_that_users_bring(name: str, tmp_path: Path) -> None:
    shape, net, weighted, integer = USERS[name]
    torch.manual_seed(0)
    graph = to_graph(net, shape)
    insert(graph, scheme_of("generic-cpu"))
    x = torch.randn(32, *shape)
    calibrate(graph, [x])
    path = tmp_path / "m.onnx"
    export_onnx(deployed(graph), shape, path, {})
    with torch.no_grad():
        twin, original = graph(x).numpy(), net.eval()(x).numpy()
    reference = load_onnxruntime(path, Recipe(optimization=Optimization.NONE), shipped("generic-cpu"))
    np.testing.assert_allclose(reference.run({"input": x.numpy()})[0], twin, atol=1e-4)
    assert (
        np.abs(twin - original).max() <= 0.05 * np.abs(original).max()
    )  # 8 bits: a few per cent of the range
    executed = load_onnxruntime(path, Recipe(), shipped("generic-cpu")).executed()
    found = [node for node in executed if node.weighted]
    assert (len(found), sum(node.integer for node in found)) == (weighted, integer)
    assert sum(layer.macs for layer in layer_table(path)) > 0


class RandomNet(nn.Module):
    """A small net from a list of choices: plain, depthwise, residual, concatenation, pooling."""

    def __init__(self, blocks: list[str], width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        self.kinds = blocks
        for kind in blocks:
            groups = width if kind == "depthwise" else 1
            out = width // 2 if kind == "concat" else width
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(width, out, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(out)
                )
            )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block(x)
            if kind == "residual":
                x = torch.relu(x + y)
            elif kind == "concat":
                y = torch.relu(y)
                x = torch.cat([y, y], 1)
            elif kind == "pool":
                x = nn.functional.max_pool2d(torch.relu(y), 2, ceil_mode=True)
            else:
                x = nn.functional.relu6(y)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@settings(
    derandomize=True,
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    blocks=st.lists(
        st.sampled_from(["plain", "depthwise", "residual", "concat", "pool"]), min_size=1, max_size=4
    ),
    width=st.sampled_from([8, 16]),
    device=st.sampled_from([*HOST_SCHEMES, "portable", "openvino-avx2", "zcu104", "nvidia-l4"]),
    seed=st.integers(0, 1000),
)
def test_any_small_net_exports_agrees_and_stays_integer(
    tmp_path: Path, blocks: list[str], width: int, device: str, seed: int
) -> None:
    torch.manual_seed(seed)
    graph = to_graph(RandomNet(blocks, width), SAMPLE_SHAPE)
    insert(graph, scheme_of(device))
    calibrate(graph, [images(seed=seed)])
    path = tmp_path / "net.onnx"
    export_onnx(deployed(graph), SAMPLE_SHAPE, path, {})
    asked = asked_for_integer(path)
    if "onnxruntime" in shipped(device).runtimes:
        executed = load_onnxruntime(path, Recipe(), shipped("generic-cpu")).executed()
        assert len([node for node in executed if node.weighted]) == len(blocks) + 2
        assert float_operators(asked, executed) == []
    wanted = len(blocks) + 2 - (blocks.count("depthwise") if device == "portable" else 0)
    assert len(asked) == wanted
    reference = load_onnxruntime(path, Recipe(optimization=Optimization.NONE), shipped("generic-cpu"))
    x = images(50, seed=seed + 1)
    with torch.no_grad():
        twin = graph(x).numpy()
    (logits,) = reference.run({"input": x.numpy()})
    # One output step of the last layers, relative to the logits' range.
    assert np.abs(logits - twin).max() <= 0.05 * max(1e-3, float(np.ptp(twin)))
