"""The most that activations need at once, counted by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from hwopt.latency.costs import exported
from hwopt.live_memory import activation_bytes


def test_a_chain_needs_two_neighbours() -> None:
    module = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 20), nn.Linear(20, 5)).eval()
    # Input 10 and 100; then 100 and 20; four bytes each. The activation function works in place.
    assert activation_bytes(exported(module, (10,))) == 4 * 120
    wide = nn.Sequential(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 5)).eval()
    assert (
        activation_bytes(exported(wide, (300,))) == 4 * 400
    )  # in place of its own input, not of the layer's before


def test_a_skip_lives_until_it_is_added() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(50, 10), nn.Linear(10, 50)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(self.one(x))

    # The input, the narrow one and the wide one at the second layer; then both summands and the sum.
    assert activation_bytes(exported(Skip().eval(), (50,))) == 4 * (50 + 50 + 50)


def test_an_unknown_shape_is_no_number() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length", 4])
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", [x], [y])
    assert activation_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])) is None


def test_integers_are_a_quarter(tmp_path: Path) -> None:
    import numpy as np
    from onnx import numpy_helper

    def stored(name: str, value: object, dtype: object) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)  # type: ignore[call-overload]

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("MatMul", ["xd", "w"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["md"]),
        helper.make_node("MatMul", ["md", "w"], ["y"]),
    ]
    weights = [
        stored("s", 0.1, np.float32),
        stored("z", 0, np.uint8),
        stored("w", np.ones((100, 100)), np.float32),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 100]) for n in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:], weights),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    # The float input with its codes; or codes with the float output: what is between is codes alone.
    assert activation_bytes(model) == 4 * 100 + 100
