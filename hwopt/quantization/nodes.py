"""Reading and changing single nodes of a torch graph."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten

CONVOLUTIONS: Final = {
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
}
TRANSPOSED: Final = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input}


def argument(node: fx.Node, index: int) -> Any:
    """An argument of a node, None past the end; what it is depends on the operator."""
    return node.args[index] if len(node.args) > index else None


def constant(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor behind a ``get_attr`` node, else None."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        value: Any = operator.attrgetter(str(node.target))(graph_module)
        return value if isinstance(value, Tensor) else None
    return None


def set_constant(graph_module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Replace the tensor behind a ``get_attr`` node."""
    path, _, name = str(node.target).rpartition(".")
    owner = graph_module.get_submodule(path) if path else graph_module
    kept = nn.Parameter(value) if isinstance(getattr(owner, name), nn.Parameter) else value
    setattr(owner, name, kept)


def add_constant(graph_module: fx.GraphModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new parameter and its ``get_attr`` node."""
    path, _, leaf = name.rpartition(".")
    owner = graph_module.get_submodule(path) if path else graph_module
    owner.register_parameter(leaf, nn.Parameter(value))
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.get_attr(name)
