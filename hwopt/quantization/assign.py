"""Decide before acting: which tensor gets which grid, and the rule that says so.

Pure: reads the graph, changes nothing, and returns a table that can be printed and kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import torch
from torch import fx

from hwopt.core.canonical import JSON
from hwopt.core.hardware import QuantizationScheme, TensorScheme
from hwopt.quantization.graph import CONVOLUTIONS, argument, constant

_aten = torch.ops.aten

# ATen operator -> ONNX operator type, the language of hardware profiles.
WEIGHTED: Final[dict[Any, str]] = {
    _aten.conv1d.default: "Conv",
    _aten.conv2d.default: "Conv",
    _aten.conv_transpose2d.input: "ConvTranspose",
    _aten.linear.default: "Gemm",
    _aten.matmul.default: "MatMul",
    _aten.mm.default: "MatMul",
    _aten.bmm.default: "MatMul",
}
OTHER: Final[dict[Any, str]] = {
    _aten.add.Tensor: "Add",
    _aten.mul.Tensor: "Mul",
    _aten.cat.default: "Concat",
    _aten.adaptive_avg_pool2d.default: "GlobalAveragePool",
    _aten.avg_pool2d.default: "AveragePool",
    _aten.leaky_relu.default: "LeakyRelu",
    _aten.sigmoid.default: "Sigmoid",
}
# Output lies on the input's grid: one grid serves both.
TRANSPARENT: Final = {
    _aten.max_pool2d.default,
    _aten.flatten.using_ints,
    _aten.view.default,
    _aten.reshape.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.squeeze.dim,
    _aten.unsqueeze.default,
}


class Role(StrEnum):
    """What a tensor is to the operator that asked for its grid."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One tensor and its grid; ``scheme`` None leaves it in floating point."""

    tensor: str  # node name
    role: Role
    operator: str  # ONNX type of the operator concerned
    node: str  # that operator's node name
    scheme: TensorScheme | None
    rule: str  # why
    axis: int | None = None
    ceiling: float | None = None  # greatest value the tensor can hold
    shares: str | None = None  # the tensor whose grid this one uses

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, for the table artifact and ``--explain``."""
        return {
            "tensor": self.tensor,
            "role": self.role.value,
            "operator": self.operator,
            "dtype": None if self.scheme is None else self.scheme.dtype,
            "codes": None if self.scheme is None else list(self.scheme.codes),
            "granularity": None
            if self.scheme is None
            else ("channel" if self.axis is not None else "tensor"),
            "shares": self.shares,
            "rule": self.rule,
        }


@dataclass(slots=True)
class Assignment:
    """All decisions; activations in graph order, then weights and biases of each operator."""

    decisions: list[Decision] = field(default_factory=list)
    # placement "inputs": tensor -> names of the operators that read the quantized value
    readers: dict[str, set[str]] = field(default_factory=dict)


def assign(graph_module: fx.GraphModule, scheme: QuantizationScheme) -> Assignment:
    """The grid of every tensor under ``scheme``."""
    nodes = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    result = Assignment()
    chosen = [node for node in nodes if _onnx_type(node) in scheme.operators]
    _weights(graph_module, chosen, scheme, result)
    if scheme.placement == "inputs":
        _activations_at_inputs(graph_module, chosen, scheme, result)
    else:
        _activations_at_outputs(graph_module, chosen, scheme, result)
    _left_in_float(nodes, chosen, scheme, result)
    return result


def _onnx_type(node: fx.Node) -> str | None:
    kind = WEIGHTED.get(node.target) or OTHER.get(node.target)
    if kind in {"Add", "Mul"} and not all(isinstance(a, fx.Node) for a in node.args[:2]):
        return None  # an operand is a number: no second tensor to quantize
    if kind == "GlobalAveragePool" and list(argument(node, 1)) != [1, 1]:
        return None
    return kind


def _weights(
    graph_module: fx.GraphModule, chosen: list[fx.Node], scheme: QuantizationScheme, result: Assignment
) -> None:
    seen: set[str] = set()
    for node in chosen:
        kind = WEIGHTED.get(node.target)
        weight = argument(node, 1)
        tensor = constant(graph_module, weight)
        if kind is None or tensor is None:
            continue
        if weight.name not in seen:  # a layer that is called twice has one weight, and one grid for it
            seen.add(weight.name)
            per_channel = scheme.weights.granularity == "channel"
            result.decisions.append(
                Decision(
                    tensor=weight.name,
                    role=Role.WEIGHT,
                    operator=kind,
                    node=node.name,
                    scheme=scheme.weights,
                    axis=_channel_axis(node, tensor.dim()) if per_channel else None,
                    rule=f"{scheme.weights.dtype} {list(scheme.weights.codes)}: {scheme.why}",
                )
            )
        bias = argument(node, 2)
        if constant(graph_module, bias) is not None:
            in_integer = scheme.bias == "int32"
            result.decisions.append(
                Decision(
                    tensor=bias.name,
                    role=Role.BIAS,
                    operator=kind,
                    node=node.name,
                    scheme=TensorScheme(dtype="int32", symmetric=True, granularity="channel")
                    if in_integer
                    else None,
                    rule="int32 at input scale × weight scale, added in the accumulator"
                    if in_integer
                    else "the device adds the bias in floating point",
                )
            )


def _channel_axis(node: fx.Node, rank: int) -> int:
    if node.target in CONVOLUTIONS:
        return 1 if node.target is _aten.conv_transpose2d.input else 0
    return 0 if node.target is _aten.linear.default else rank - 1


def _fused_activation(node: fx.Node) -> fx.Node | None:
    """The ReLU or ReLU6 that the runtime merges into ``node``, if it is its only reader."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op != "call_function":
        return None
    if user.target is _aten.relu.default:
        return user
    if user.target is _aten.hardtanh.default and argument(user, 1) == 0.0:
        return user
    return None


def _ceiling(node: fx.Node) -> float | None:
    if node.op == "call_function" and node.target is _aten.hardtanh.default and argument(node, 1) == 0.0:
        return float(argument(node, 2))
    return None


def _cannot_be_negative(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if node.target in {_aten.relu.default, _aten.sigmoid.default}:
        return True
    if node.target is _aten.hardtanh.default:
        return float(argument(node, 1)) >= 0
    passed_on = TRANSPARENT | {_aten.adaptive_avg_pool2d.default, _aten.avg_pool2d.default, _aten.add.Tensor}
    if node.target is _aten.add.Tensor and (
        len(node.all_input_nodes) != 2 or node.kwargs.get("alpha", 1) != 1
    ):
        return False  # a number is added, or something is taken away
    if node.target in passed_on:
        return all(_cannot_be_negative(source) for source in node.all_input_nodes)
    return False


def _activation_scheme(node: fx.Node, scheme: TensorScheme) -> TensorScheme:
    """The scheme of a tensor; devices with a type for non-negative values use it where that is certain."""
    if scheme.nonnegative is not None and _cannot_be_negative(node):
        return scheme.model_copy(update={"dtype": scheme.nonnegative, "range": None})
    return scheme


def _tensor_inputs(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Activations that ``node`` reads."""
    if node.target is _aten.cat.default:
        return [a for a in argument(node, 0) if not _is_constant(a)]
    width = (
        2
        if node.target in {_aten.add.Tensor, _aten.mul.Tensor} or WEIGHTED.get(node.target) == "MatMul"
        else 1
    )
    inputs = [a for a in node.args[:width] if isinstance(a, fx.Node)]
    return [a for a in inputs if not _is_constant(a)]


def _is_constant(node: fx.Node) -> bool:
    """Whether a value follows from constants alone: a weight, or a view of one."""
    if node.op == "get_attr":
        return True
    sources = node.all_input_nodes
    return node.op == "call_function" and bool(sources) and all(_is_constant(source) for source in sources)


def _activations_at_outputs(
    graph_module: fx.GraphModule, chosen: list[fx.Node], scheme: QuantizationScheme, result: Assignment
) -> None:
    """A grid on every tensor that enters or leaves a chosen operator."""
    wanted: dict[fx.Node, tuple[str, str]] = {}  # node -> (operator, rule)
    results = set(graph_module.graph.output_node().all_input_nodes)
    for node in chosen:
        kind = str(_onnx_type(node))
        for source in _tensor_inputs(graph_module, node):
            wanted.setdefault(source, (kind, f"read by {kind}, which runs in integer"))
        end = _fused_activation(node) or node
        if end in results and kind in {"Gemm", "MatMul"}:
            continue  # the result of the network: these operators hand out floats for free
        rule = f"written by {kind}, which needs its output quantized to run in integer"
        wanted[end] = (kind, rule if end is node else rule + "; the activation is merged into the grid")
    # A transparent operator has one grid on both sides, so its source is wanted as well.
    shared: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(graph_module.graph.nodes)):
        if node in wanted and node.op == "call_function" and node.target in TRANSPARENT:
            source = argument(node, 0)
            shared[node] = source
            wanted.setdefault(source, (wanted[node][0], f"passed on unchanged to {node.name}"))
    for node in graph_module.graph.nodes:
        if node not in wanted:
            continue
        kind, rule = wanted[node]
        root = node
        while root in shared:
            root = shared[root]
        result.decisions.append(
            Decision(
                tensor=node.name,
                role=Role.ACTIVATION,
                operator=kind,
                node=node.name,
                scheme=_activation_scheme(root, scheme.activations),
                ceiling=_ceiling(root)
                if not _activation_scheme(root, scheme.activations).type.signed
                else None,
                shares=None if root is node else root.name,
                rule=rule if root is node else f"same values as {root.name}, so the same grid",
            )
        )


def _activations_at_inputs(
    graph_module: fx.GraphModule, chosen: list[fx.Node], scheme: QuantizationScheme, result: Assignment
) -> None:
    """A grid only where a weighted operator reads."""
    for node in graph_module.graph.nodes:
        readers = [
            user
            for user in node.users
            if user in chosen and user.target in WEIGHTED and node in _tensor_inputs(graph_module, user)
        ]
        if not readers:
            continue
        kind = str(_onnx_type(readers[0]))
        result.readers[node.name] = {reader.name for reader in readers}
        result.decisions.append(
            Decision(
                tensor=node.name,
                role=Role.ACTIVATION,
                operator=kind,
                node=node.name,
                scheme=_activation_scheme(node, scheme.activations),
                rule=f"read by {kind}; the runtime quantizes inputs of weighted operators only",
            )
        )


def _left_in_float(
    nodes: list[fx.Node], chosen: list[fx.Node], scheme: QuantizationScheme, result: Assignment
) -> None:
    for node in nodes:
        kind = _onnx_type(node)
        if kind is not None and node not in chosen:
            result.decisions.append(
                Decision(
                    tensor=node.name,
                    role=Role.ACTIVATION,
                    operator=kind,
                    node=node.name,
                    scheme=None,
                    rule=f"{kind} is not among the operators that this device runs in integer",
                )
            )
