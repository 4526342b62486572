"""A torch module as a graph of ATen operators, tidied for inference.

``torch.export`` gives the graph; then dropout goes, batch norm is folded into the convolution or linear
layer before it, and a mean over the image becomes the pooling operator that integer runtimes know.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from hwopt.errors import StageFailedError

_aten = torch.ops.aten

CONVOLUTIONS: Final = {
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv_transpose2d.input,
}
_DROPOUT: Final = {_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default}
_RELU6: Final = {_aten.relu6.default, _aten.relu6_.default}
_IN_PLACE: Final = {
    _aten.relu_.default: _aten.relu.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.silu_.default: _aten.silu.default,
}


_NOISY_LOGGERS: Final = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep torch's exporters from talking about their own insides."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def to_graph(model: nn.Module, sample_shape: Sequence[int]) -> fx.GraphModule:
    """``model`` in evaluation mode as a graph that shares no memory with it; batch norm folded.

    Args:
        model: any module that ``torch.export`` takes, one input, batch first.
        sample_shape: shape of one sample without the batch axis.
    Raises:
        StageFailedError: ``torch.export`` cannot trace the module.
    """
    was_training = model.training
    model.eval()
    example = torch.zeros(2, *sample_shape)
    try:
        with quiet_exporters():
            exported = torch.export.export(
                model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
            )
    except Exception as error:  # torch.export raises a dozen types; all mean the same to the user
        raise StageFailedError(
            f"torch.export cannot trace the model: {str(error).splitlines()[0]}",
            fix="avoid Python branches on tensor values, and shapes fixed in forward()",
        ) from error
    finally:
        model.train(was_training)
    with quiet_exporters():
        traced = exported.module(check_guards=False)
    graph_module = fx.GraphModule(_own_constants(traced), traced.graph)
    _plain_operators(graph_module)
    _remove_dropout(graph_module)
    _fold_batch_norm(graph_module)
    _pool_means(graph_module)
    _prune_unused(graph_module)
    for parameter in graph_module.parameters():
        parameter.requires_grad_(True)
    return graph_module


def _own_constants(traced: Any) -> dict[str, Tensor]:
    """Parameters and buffers by flat, dot-free names, detached from the user's module."""
    constants: dict[str, Tensor] = {}
    for name, parameter in traced.named_parameters():
        constants[name] = nn.Parameter(parameter.detach().clone())
    for name, buffer in traced.named_buffers():
        constants[name] = buffer.detach().clone()
    for node in traced.graph.nodes:  # tensors that forward() made itself, lifted by torch.export
        if node.op == "get_attr" and node.target not in constants:
            constants[node.target] = operator.attrgetter(node.target)(traced).detach().clone()
    return constants


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


def _plain_operators(graph_module: fx.GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        if node.op == "call_function" and node.target in _RELU6:
            node.target, node.args = _aten.hardtanh.default, (argument(node, 0), 0.0, 6.0)


def _remove_dropout(graph_module: fx.GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and node.target in _DROPOUT:
            node.replace_all_uses_with(argument(node, 0))
            graph_module.graph.erase_node(node)


def _fold_batch_norm(graph_module: fx.GraphModule) -> None:
    """Fold evaluation-mode batch norm into the layer before it: Jacob et al., 2018, equation 14."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target is not _aten.batch_norm.default:
            continue
        layer = argument(node, 0)
        foldable = layer.op == "call_function" and layer.target in CONVOLUTIONS | {_aten.linear.default}
        weight = constant(graph_module, argument(layer, 1)) if foldable else None
        if weight is None or len(layer.users) != 1 or len(layer.args[1].users) != 1:
            continue
        gamma, beta, mean, var = (constant(graph_module, a) for a in node.args[1:5])
        if mean is None or var is None:
            continue
        # float64: the folded net should differ from the trained one by rounding only.
        factor = (var.double() + argument(node, 7)).rsqrt()
        if gamma is not None:
            factor = factor * gamma.double()
        bias = constant(graph_module, argument(layer, 2))
        shift = (bias.double() if bias is not None else 0.0) - mean.double()
        new_bias = shift * factor + (beta.double() if beta is not None else 0.0)
        axis = 1 if layer.target is _aten.conv_transpose2d.input else 0
        if axis == 1 and len(layer.args) > 6 and layer.args[6] != 1:
            continue  # grouped transposed convolution: channels are spread over both axes
        shape = [-1 if i == axis else 1 for i in range(weight.dim())]
        set_constant(
            graph_module, layer.args[1], (weight.double() * factor.reshape(shape)).to(weight.dtype).detach()
        )
        name = str(layer.args[1].target).rpartition(".")[0]
        if bias is not None:
            set_constant(graph_module, layer.args[2], new_bias.to(weight.dtype).detach())
        else:
            leaf = f"{name}.bias" if name else f"{layer.name}_bias"
            new = add_constant(graph_module, leaf, new_bias.to(weight.dtype).detach(), layer)
            layer.args = (*layer.args[:2], new, *layer.args[3:])
        node.replace_all_uses_with(layer)
        graph_module.graph.erase_node(node)


def _pool_means(graph_module: fx.GraphModule) -> None:
    """``x.mean((2, 3))`` is global average pooling, and integer runtimes know it only by that name."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not _aten.mean.dim:
            continue
        source, axes = argument(node, 0), argument(node, 1)
        value = source.meta.get("val")
        if value is None or value.dim() != 4 or sorted(a % 4 for a in axes) != [2, 3]:
            continue
        keep = bool(argument(node, 2))
        with graph.inserting_before(node):
            pooled = graph.call_function(_aten.adaptive_avg_pool2d.default, (source, [1, 1]))
            result = pooled if keep else graph.call_function(_aten.flatten.using_ints, (pooled, 1))
        pooled.meta["val"] = value.mean((2, 3), keepdim=True)
        result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _prune_unused(graph_module: fx.GraphModule) -> None:
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [n for n, _ in graph_module.named_parameters()] + [
        n for n, _ in graph_module.named_buffers()
    ]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph_module.get_submodule(path) if path else graph_module, leaf)
    graph_module.recompile()
