"""A torch graph as the rules see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx

from hwopt.quantization.net import Array, Observer, Op
from hwopt.quantization.nodes import (
    CONVOLUTIONS,
    TRANSPOSED,
    add_constant,
    argument,
    behind_padding,
    constant,
    is_zero_padding,
    set_constant,
)

_aten = torch.ops.aten

_WEIGHTED: Final[dict[Any, str]] = {
    _aten.conv1d.default: "Conv",
    _aten.conv2d.default: "Conv",
    _aten.conv_transpose1d.default: "ConvTranspose",
    _aten.conv_transpose2d.input: "ConvTranspose",
    _aten.linear.default: "Gemm",
    _aten.matmul.default: "MatMul",
    _aten.mm.default: "MatMul",
    _aten.bmm.default: "MatMul",
    _aten.embedding.default: "Gather",
}
_OTHER: Final[dict[Any, str]] = {
    _aten.add.Tensor: "Add",
    _aten.mul.Tensor: "Mul",
    _aten.cat.default: "Concat",
    _aten.adaptive_avg_pool2d.default: "GlobalAveragePool",
    _aten.avg_pool2d.default: "AveragePool",
    _aten.leaky_relu.default: "LeakyRelu",
    _aten.sigmoid.default: "Sigmoid",
    _aten.softmax.int: "Softmax",
    _aten.relu.default: "Relu",
    _aten.hardtanh.default: "Clip",
    _aten.layer_norm.default: "LayerNormalization",
    _aten.max_pool2d.default: "MaxPool",
    _aten.flatten.using_ints: "Flatten",
    _aten.view.default: "Reshape",
    _aten.reshape.default: "Reshape",
    _aten.permute.default: "Transpose",
    _aten.transpose.int: "Transpose",
    _aten.squeeze.dim: "Squeeze",
    _aten.unsqueeze.default: "Unsqueeze",
    _aten.slice.Tensor: "Slice",
}
# Never quantized here, but the table names them when they carry weights.
_RECURRENT: Final[dict[Any, str]] = {_aten.lstm.input: "LSTM", _aten.gru.input: "GRU"}
_MULTIPLE_INPUTS: Final = {"Add", "Mul", "MatMul"}


class FxNet:
    """The view of a graph made by ``to_graph``, before fake quantizers are put into it."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.nodes = {node.name: node for node in graph_module.graph.nodes}
        self._constants = _constants(graph_module.graph)
        self.ops: list[Op] = [self._op(n) for n in self.nodes.values() if n.op == "call_function"]
        self.ops = [
            op
            for op in self.ops
            if self.nodes[op.name] not in self._constants and not is_zero_padding(self.nodes[op.name])
        ]
        self.outputs = frozenset(n.name for n in graph_module.graph.output_node().all_input_nodes)

    def constant(self, name: str) -> Array | None:
        """A parameter or buffer, as NumPy."""
        tensor = constant(self.graph_module, self.nodes.get(name))
        return None if tensor is None else tensor.detach().numpy()

    def set_constant(self, name: str, value: Array) -> None:
        """Replace the tensor behind a ``get_attr`` node."""
        set_constant(self.graph_module, self.nodes[name], torch.as_tensor(value, dtype=torch.float32))

    def scale(self, tensor: str, factor: Array, users: Sequence[str]) -> None:
        """An operator of its own in front of the readers."""
        node = self.nodes[tensor]
        value = torch.as_tensor(factor, dtype=torch.float32)
        name = f"{tensor}_smoothing"
        graph = self.graph_module.graph
        constant_node = add_constant(self.graph_module, name, value, next(iter(graph.nodes)))
        with graph.inserting_after(node):
            scaled = graph.call_function(_aten.mul.Tensor, (node, constant_node))
        scaled.meta["val"] = node.meta.get("val")
        for user in users:
            self.nodes[user].replace_input_with(node, scaled)
        self.graph_module.meta.setdefault("scaled", []).append((tensor, tuple(users)))
        self.graph_module.recompile()

    def observe(self, batches: Iterable[Any], names: Sequence[str], see: Observer) -> int:
        """Run node by node and show the named tensors."""
        wanted = set(names)

        class Watch(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted:
                    see(n.name, value.detach().numpy())
                return value

        samples = 0
        with torch.no_grad():
            for batch in batches:
                Watch(self.graph_module).run(batch)
                samples += len(batch)
        return samples

    def _op(self, node: fx.Node) -> Op:
        target = node.target
        weighted = _WEIGHTED.get(target)
        kind = weighted or _OTHER.get(target) or _RECURRENT.get(target)
        inputs = tuple(a.name for a in self._activations(node, kind))
        fields: dict[str, Any] = {}
        if weighted:
            weight = argument(node, 0 if kind == "Gather" else 1)
            tensor = constant(self.graph_module, weight)
            if tensor is not None:
                fields = _weight_fields(node, tensor)
                kind = kind if fields else None
                bias = argument(node, 2) if fields and kind != "Gather" else None
                if isinstance(bias, fx.Node) and bias.op == "get_attr":
                    fields["bias"] = bias.name
            elif kind == "Gather" or len(inputs) < (1 if target in CONVOLUTIONS else 2):
                kind = None  # a product with a view of a weight: there is no tensor to store in integers
        elif kind in {"Add", "Mul", "Concat"}:
            operands = argument(node, 0) if kind == "Concat" else node.args[:2]
            if len(inputs) != len(operands) or len(inputs) < 2 or node.kwargs.get("alpha", 1) != 1:
                kind = None  # an operand is a number or a constant: no second tensor to quantize
        elif kind == "AveragePool" and (
            (argument(node, 4) and argument(node, 5) is not False) or argument(node, 6) is not None
        ):
            kind = (
                None  # ONNX Runtime's integer kernel counts cells beyond the edge; a divisor is not exported
            )
        elif kind == "GlobalAveragePool" and list(argument(node, 1)) != [1, 1]:
            kind = None
        elif kind == "LayerNormalization":
            affine = [a for a in (argument(node, 2), argument(node, 3)) if isinstance(a, fx.Node)]
            if len(affine) == 2 and all(a.op == "get_attr" for a in affine):
                fields = {"weight": affine[0].name, "bias": affine[1].name}
        elif kind == "Clip":
            fields["bounds"] = (float(argument(node, 1)), float(argument(node, 2)))
        if kind is None or kind in {"LSTM", "GRU"}:
            inputs = tuple(a.name for a in node.all_input_nodes if a not in self._constants)
        parameters = [a.name for a in node.all_input_nodes if self._is_matrix(a)]
        return Op(
            name=node.name,
            type=kind or str(target).removeprefix("aten."),
            kind=None if kind in {"LSTM", "GRU"} else kind,
            inputs=inputs,
            output=node.name,
            parameters=tuple(parameters),
            **fields,
        )

    def _activations(self, node: fx.Node, kind: str | None) -> list[fx.Node]:
        """Activations that ``node`` reads."""
        if kind == "Gather":
            return []  # indices are integers already
        found: Iterable[Any] = node.all_input_nodes
        if kind == "Concat":
            found = argument(node, 0)
        elif kind is not None:
            found = node.args[: 2 if kind in _MULTIPLE_INPUTS else 1]
        given = [behind_padding(a) for a in found]
        return [a for a in given if isinstance(a, fx.Node) and a not in self._constants]

    def _is_matrix(self, node: fx.Node) -> bool:
        """Whether a constant, or what a view of constants looks at, has two or more axes."""
        if node.op == "get_attr":
            tensor = constant(self.graph_module, node)
            return tensor is not None and tensor.dim() > 1
        return node in self._constants and any(self._is_matrix(a) for a in node.all_input_nodes)


def _weight_fields(node: fx.Node, tensor: Tensor) -> dict[str, Any]:
    weight = argument(node, 1)
    if node.target in TRANSPOSED:
        return {"weight": weight.name, "axis": 1, "in_axis": 0, "groups": argument(node, 6) or 1}
    if node.target in CONVOLUTIONS:
        return {"weight": weight.name, "axis": 0, "in_axis": 1, "groups": argument(node, 6) or 1}
    if node.target is _aten.embedding.default:
        return {"weight": argument(node, 0).name, "axis": 0, "in_axis": 1}
    if node.target is _aten.linear.default:
        return {"weight": weight.name, "axis": 0, "in_axis": 1}
    if tensor.dim() != 2:
        return {}  # a product for each entry of a batch: no kernel with stored codes
    return {"weight": weight.name, "axis": 1, "in_axis": 0}


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Values that follow from constants alone: weights, and views of them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op == "call_function" and sources and all(source in found for source in sources)
        ):
            found.add(node)
    return found
