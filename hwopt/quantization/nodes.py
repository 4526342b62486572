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
_PADDING: Final = {_aten.pad.default, _aten.constant_pad_nd.default}
TRANSPOSED: Final = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input}


def argument(node: fx.Node, index: int) -> Any:
    """An argument of a node, None past the end; what it is depends on the operator."""
    return node.args[index] if len(node.args) > index else None


def is_zero_padding(node: object) -> bool:
    """Whether a node pads with zeros for convolutions alone: zero is exact on any grid."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.target not in _PADDING:
        return False
    plain = node.target is _aten.constant_pad_nd.default or argument(node, 2) in {None, "constant"}
    value = argument(node, 2 if node.target is _aten.constant_pad_nd.default else 3)
    readers = [user.op == "call_function" and user.target in CONVOLUTIONS for user in node.users]
    return plain and (value is None or value == 0) and bool(readers) and all(readers)


def behind_padding(node: Any) -> Any:
    """The node itself, or what it pads."""
    return argument(node, 0) if is_zero_padding(node) else node


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


def add_constant(
    graph_module: fx.GraphModule, name: str, value: Tensor, before: fx.Node, *, trainable: bool = True
) -> fx.Node:
    """A new parameter or buffer, under ``name`` or the next free one, and its ``get_attr`` node."""
    path, _, leaf = name.rpartition(".")
    owner = graph_module.get_submodule(path) if path else graph_module
    free, number = leaf, 2
    while hasattr(owner, free):
        free, number = f"{leaf}_{number}", number + 1
    name = f"{path}.{free}" if path else free
    if trainable:
        owner.register_parameter(free, nn.Parameter(value))
    else:
        owner.register_buffer(free, value)
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.get_attr(name)
