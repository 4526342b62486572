"""Graphs that are legal ONNX and no usual network: each gets the right design, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwopt
from hwopt.comparison import as_written
from hwopt.core.fpga import Layout
from hwopt.errors import ConfigError, HwoptError, StageFailedError
from hwopt.fpga import wiring
from hwopt.fpga.emulate import Circuit
from hwopt.fpga.estimate import Wish, estimate, narrowed, read_layers, with_bits
from hwopt.fpga.qonnx import to_qonnx
from hwopt.layer_table import LayerKind
from tests.fpga.nets import conv, dense, fabric

NODE = helper.make_node


def file(
    folder: Path, nodes: list[Any], shape: list[int], stored: dict[str, Any], inputs: tuple[str, ...] = ("x",)
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in inputs],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    path = folder / "odd.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_three_spatial_axes_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, [NODE("Conv", ["x", "w"], ["y"])], [1, 4, 8, 8, 8], {"w": weight(8, 4, 3, 3, 3)})
    with pytest.raises(StageFailedError, match="no circuit for Conv"):
        hwopt.fpga_estimate(path, target="zcu104", bits=(8, 8))


def test_free_sizes_are_refused_and_a_free_batch_is_one(tmp_path: Path) -> None:
    node = [NODE("Conv", ["x", "w"], ["y"])]
    free = file(tmp_path, node, ["n", 4, "h", "w"], {"w": weight(8, 4, 3, 3)})  # type: ignore[list-item]
    with pytest.raises(StageFailedError, match="the shape of 'x' is not known") as raised:
        hwopt.fpga_estimate(free, target="zcu104", bits=(8, 8))
    assert "fixed sizes for all axes but the batch" in str(raised.value)
    batch = file(tmp_path, node, ["n", 4, 8, 8], {"w": weight(8, 4, 3, 3)})  # type: ignore[list-item]
    assert hwopt.fpga_estimate(batch, target="zcu104", bits=(8, 8))["fits"]


def test_dilation_and_auto_pad_reach_the_line_buffer(tmp_path: Path) -> None:
    node = NODE("Conv", ["x", "w"], ["y"], dilations=[4, 4], auto_pad="SAME_UPPER")
    (layer,) = read_layers(file(tmp_path, [node], [1, 4, 32, 32], {"w": weight(8, 4, 3, 3)}))
    assert layer.reach == (9, 9)
    assert (layer.padding, layer.pad_after) == ((4, 4), (4, 4))
    assert layer.out_shape == (8, 32, 32)


def test_a_scaled_activation_is_no_stored_tensor(tmp_path: Path) -> None:
    nodes = [NODE("Conv", ["x", "w"], ["a"]), NODE("Mul", ["k", "a"], ["b"]), NODE("Add", ["b", "x"], ["y"])]
    layers = read_layers(file(tmp_path, nodes, [1, 4, 8, 8], {"w": weight(4, 4, 1, 1), "k": np.float32(2)}))
    add = layers[-1]
    assert add.kind is LayerKind.ADD
    assert not add.constant
    assert len(add.inputs) == 2


def test_rows_of_a_depthwise_layer_share_no_block() -> None:
    deep = conv(cin=16, cout=16, kind=LayerKind.DEPTHWISE, groups=16)
    from hwopt.fpga.streaming import matrix_unit

    unit = matrix_unit(deep, fabric(), 16, 9, in_dsp=True, weights_in="lutram")
    assert unit.resources.dsp == 16 * 9


def test_several_inputs_and_no_layer(tmp_path: Path) -> None:
    two = file(tmp_path, [NODE("Add", ["x", "z"], ["y"])], [1, 4], {}, ("x", "z"))
    with pytest.raises(StageFailedError, match="the model has 2 inputs"):
        hwopt.fpga_estimate(two, target="zcu104", bits=(8, 8))
    none = file(tmp_path, [NODE("Relu", ["x"], ["y"])], [1, 4], {})
    with pytest.raises(StageFailedError, match="no layer that computes"):
        hwopt.fpga_estimate(none, target="zcu104", bits=(8, 8))


def test_the_input_stream_is_a_bottleneck_too() -> None:
    design, _ = estimate(with_bits([dense(512, 2)], 2, 8), fabric(), Wish())
    assert design.interval >= 512 * 8 / 64


def test_queues_hold_what_waits_in_a_running_pipeline() -> None:
    """Four convolutions beside a shortcut: some rows wait, not the whole frame; and the design fits with them."""
    layers = [conv(cin=3, cout=16, size=64, name="first")]
    for index in range(4):
        before = layers[-1].name
        layers.append(conv(cin=16, cout=16, size=64, name=f"c{index}", inputs=(before,)))
    join = conv(cin=16, cout=16, size=64, name="join", inputs=("first", "c3"), kind=LayerKind.ADD, kernel=(1, 1),
                op="Add", padding=(0, 0), pad_after=(0, 0), macs=0, weights=0)  # fmt: skip
    design, _ = estimate([*layers, join], fabric("pynq-z2"), Wish())
    # Each convolution holds back a row and a pixel.
    assert 4 * 64 <= design.fifo_words["join"] <= 8 * 64
    assert design.fits


def test_pruning_follows_the_channels() -> None:
    flat = dense(12 * 49, 10, "d", ("c",))
    layers = [conv(cin=3, cout=12, size=7, name="c"), flat]
    cut = narrowed(layers, 0.5)
    assert cut[0].out_shape[0] == 8
    assert cut[1].in_shape[0] == 8 * 49
    with pytest.raises(ConfigError, match="has 4 groups"):
        narrowed([conv(groups=4)], 0.5)


def test_the_frame_of_an_overlay_is_loaded() -> None:
    pool = conv(cin=4, cout=4, size=8, kind=LayerKind.POOL, kernel=(2, 2), stride=(2, 2), inputs=("",), op="MaxPool",
                out_shape=(4, 4, 4), padding=(0, 0), pad_after=(0, 0), macs=0, weights=0, weight_bits=32)  # fmt: skip
    design, _ = estimate([pool], fabric("zcu104"), Wish(layout=Layout.OVERLAY))
    assert design.units[0].off_chip_bytes == 4 * 64 + 4 * 16


def test_what_the_overlay_takes_is_not_judged_where_nobody_says() -> None:
    design, _ = estimate([conv()], fabric("zcu104"), Wish(layout=Layout.OVERLAY))
    assert design.fits is None
    assert set(design.unknown) == {"bram", "uram"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames_per_second": float("nan")}, {"clock_mhz": -1.0}, {"cores": -1}, {"layout": "x"}, {"flow": "x"},
        {"folding": {"c": {"pe": 0}}}, {"folding": {"c": {"reuse": 4}}}, {"folding": {"c": {"speed": 4}}},
        {"folding": {"c": {"pe": 1}}, "layout": "overlay"}, {"folding": {"c": {"pe": 1}}, "frames_per_second": 1.0},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = file(
        tmp_path, [NODE("Conv", ["x", "w"], ["y"], name="c")], [1, 4, 8, 8], {"w": weight(8, 4, 3, 3)}
    )
    with pytest.raises(ConfigError):
        hwopt.fpga_estimate(path, target="zcu104", bits=(8, 8), **wrong)


QDQ = {"s": np.float32(0.125), "z": np.int8(0)}


def quantized(folder: Path, nodes: list[Any], shape: list[int], stored: dict[str, Any]) -> Path:
    first = [NODE("QuantizeLinear", ["x", "s", "z"], ["q"]), NODE("DequantizeLinear", ["q", "s", "z"], ["v"])]
    return file(folder, [*first, *nodes], shape, QDQ | stored)


@pytest.mark.parametrize(
    ("nodes", "stored"),
    [
        ([NODE("Clip", ["v", "low", "high"], ["y"])], {"low": np.float32(0), "high": np.float32(3.4e38)}),
        ([NODE("Unsqueeze", ["v", "a"], ["u"]), NODE("Squeeze", ["u", "a"], ["y"])], {"a": np.array([1])}),
        ([NODE("Sigmoid", ["v"], ["t"]), NODE("QuantizeLinear", ["t", "s", "z"], ["p"]),
          NODE("DequantizeLinear", ["p", "s", "z"], ["y"])], {}),
        ([NODE("QuantizeLinear", ["v", "s", "z4"], ["p"]), NODE("DequantizeLinear", ["p", "s", "z4"], ["y"])],
         {"z4": onnx.numpy_helper.to_array(helper.make_tensor("t", TensorProto.INT4, [], [0]))}),
        ([NODE("QuantizeLinear", ["v", "s"], ["p"], output_dtype=TensorProto.INT8),
          NODE("DequantizeLinear", ["p", "s"], ["y"])], {}),
        ([NODE("Conv", ["v", "wf", "bf"], ["y"])], {"wq": np.int8([[[1, 2]], [[-3, 4]]])}),
    ],
)  # fmt: skip
def test_the_emulation_of_other_peoples_files(
    tmp_path: Path, nodes: list[Any], stored: dict[str, Any]
) -> None:
    if "wq" in stored:
        codes, scale = np.int8([[[1], [2]], [[-3], [4]]]), np.float32([0.25, 0.5])
        stored = {"wq": codes, "ws": scale, "bq": np.int32([3, -5]), "bs": scale * np.float32(0.125)}
        nodes = [
            NODE("DequantizeLinear", ["wq", "ws"], ["wf"], axis=0),
            NODE("DequantizeLinear", ["bq", "bs"], ["bf"], axis=0), *nodes,
        ]  # fmt: skip
    path = quantized(tmp_path, nodes, [4, 2, 3], stored)
    x = np.random.default_rng(3).normal(0, 9, (4, 2, 3)).astype(np.float32)
    x[0, 0, 0] = 1e20  # saturates
    found, written = Circuit(path).run(x)[0], as_written(path, x)
    assert np.abs(found - written).max() <= (0.125 if nodes[0].op_type == "Sigmoid" else 0)


@pytest.mark.parametrize(
    ("nodes", "stored", "said"),
    [
        ([NODE("Add", ["v", "far"], ["y"])], {"f": np.int8(7), "fs": np.float32(2.0**-62)}, "too far apart"),
        (
            [NODE("MaxPool", ["v"], ["y"], kernel_shape=[2], auto_pad="SAME_UPPER")],
            {},
            "auto_pad is not read",
        ),
        ([NODE("Softmax", ["v"], ["y"])], {}, "no integer arithmetic for Softmax"),
    ],
)
def test_what_the_emulation_refuses(
    tmp_path: Path, nodes: list[Any], stored: dict[str, Any], said: str
) -> None:
    if stored:
        nodes = [NODE("DequantizeLinear", ["f", "fs"], ["far"]), *nodes]
    path = quantized(tmp_path, nodes, [4, 2, 3], stored)
    with pytest.raises(HwoptError, match=said):
        Circuit(path).run(np.ones((4, 2, 3), np.float32))


def test_scales_in_constant_nodes(tmp_path: Path) -> None:
    """As some exporters write them: nodes instead of stored tensors, and a clip with one end."""
    scale = NODE("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(0.25)))
    pairs = [NODE("QuantizeLinear", ["c", "k", "z"], ["p"]), NODE("DequantizeLinear", ["p", "k", "z"], ["v"])]
    stored = {"z": np.int8(0), "low": np.float32(0), "wq": np.int8([[1, -2, 3]]).T, "ws": np.float32(0.5)}
    nodes = [
        scale, NODE("Clip", ["x", "low"], ["c"]), *pairs,
        NODE("DequantizeLinear", ["wq", "ws"], ["w"]), NODE("MatMul", ["v", "w"], ["y"]),
    ]  # fmt: skip
    path = file(tmp_path, nodes, [4, 3], stored)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.array_equal(Circuit(path).run(x)[0], as_written(path, x))
    if wiring.installed():
        assert np.array_equal(
            wiring.Wires(file(tmp_path, nodes, [1, 3], stored)).predict(x), as_written(path, x)
        )


def test_a_rate_that_nothing_reaches_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the units alone do not fit, no other reserve for queues helps."""
    from hwopt.fpga import estimate as room

    calls: list[int] = []
    whole = room.search
    monkeypatch.setattr(room, "search", lambda *a: calls.append(1) or whole(*a))
    block = [
        conv(cin=256, cout=256, size=16, name="a"),
        conv(cin=256, cout=256, size=16, name="b", inputs=("a",)),
    ]
    join = conv(cin=256, cout=256, size=16, name="j", inputs=("a", "b"), kind=LayerKind.ADD, op="Add", kernel=(1, 1),
                padding=(0, 0), pad_after=(0, 0), macs=0, weights=0)  # fmt: skip
    design, _ = estimate([*block, join], fabric("pynq-z2"), Wish(frames_per_second=1000))
    assert design.short
    assert len(calls) == 1


def test_nan_is_no_input(tmp_path: Path) -> None:
    path = quantized(tmp_path, [NODE("Relu", ["v"], ["y"])], [1, 2, 3], {})
    with pytest.raises(ConfigError, match="an input is NaN"):
        Circuit(path).run(np.full((1, 2, 3), np.nan, np.float32))


def test_a_pair_that_is_torn_apart_is_not_translated(tmp_path: Path) -> None:
    nodes = [
        NODE("QuantizeLinear", ["x", "s", "z"], ["q"]), NODE("MaxPool", ["q"], ["p"], kernel_shape=[2]),
        NODE("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="reads no quantizer but MaxPool"):
        to_qonnx(file(tmp_path, nodes, [1, 2, 4], QDQ))
