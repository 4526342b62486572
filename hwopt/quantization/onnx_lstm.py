"""LSTM with integer weights, in ONNX Runtime's own operator; there is no standard one."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwopt.quantization.net import Op

_DOMAIN: Final = "com.microsoft"
_KEPT: Final = frozenset(
    {"activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size"}
)


def dynamic_lstm(model: onnx.ModelProto, op: Op) -> None:
    """Turn an LSTM node into DynamicQuantizeLSTM, in place: int8 weights, activations quantized as it runs.

    ONNX Runtime, ContribOperators: weights as (directions, inputs, 4·hidden), a scale for each column.
    """
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    node = next(n for n in graph.node if n.name == op.name)
    quantized: list[str] = []
    grids: list[str] = []
    for slot in (1, 2):
        weight = numpy_helper.to_array(constants[node.input[slot]]).transpose(0, 2, 1)
        peak = np.abs(weight.astype(np.float64)).max(axis=1)
        scale = np.where(peak == 0, 1.0, peak / 127)
        codes = np.clip(np.rint(weight / scale[:, None, :]), -127, 127).astype(np.int8)
        name = f"{op.name}_{'wr'[slot - 1]}"
        for suffix, value in (
            ("codes", np.ascontiguousarray(codes)),
            ("scale", scale.astype(np.float32)),
            ("zero", np.zeros(scale.shape, np.int8)),
        ):
            graph.initializer.append(numpy_helper.from_array(value, f"{name}_{suffix}"))
        quantized.append(f"{name}_codes")
        grids += [f"{name}_scale", f"{name}_zero"]
    rest = [node.input[i] if len(node.input) > i else "" for i in range(3, 8)]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in _KEPT}
    attributes["input_forget"] = next((a.i for a in node.attribute if a.name == "input_forget"), 0)
    new = helper.make_node(
        "DynamicQuantizeLSTM",
        [node.input[0], *quantized, *rest, *grids],
        list(node.output),
        node.name,
        domain=_DOMAIN,
        **attributes,
    )
    node.CopyFrom(new)
    if all(o.domain != _DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
