"""A torch module as a graph of ATen operators, tidied for inference (``tidy``)."""

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

from hwopt.core.dataset import tokens_of
from hwopt.errors import StageFailedError
from hwopt.models.recurrent import opened
from hwopt.models.sample import example, free_axes
from hwopt.quantization import tidy

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


def to_graph(
    model: nn.Module, sample_shape: Sequence[int], *, fold_batch_norm: bool = True
) -> fx.GraphModule:
    """``model`` in evaluation mode as a graph that shares no memory with it; batch norm folded.

    Args:
        model: any module that ``torch.export`` takes, one input, batch first.
        sample_shape: shape of one sample without the batch axis.
    Raises:
        StageFailedError: ``torch.export`` cannot trace the module.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    if tokens_of(sample_shape):
        model = opened(model)
    try:
        with quiet_exporters():
            exported = torch.export.export(
                model, (example(sample_shape),), dynamic_shapes=free_axes(sample_shape)
            )
    except Exception as error:  # torch.export raises a dozen types; all mean the same to the user
        raise StageFailedError(
            f"torch.export cannot trace the model: {str(error).splitlines()[0]}",
            fix="avoid Python branches on tensor values, and shapes fixed in forward()",
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    with quiet_exporters():
        traced = exported.module(check_guards=False)
    graph_module = fx.GraphModule(_own_constants(traced), traced.graph)
    tidy.merge_tied_weights(graph_module)
    tidy.plain_operators(graph_module)
    tidy.remove_dropout(graph_module)
    tidy.open_attention(graph_module)
    tidy.explicit_padding(graph_module)
    tidy.fold_constants(graph_module)
    tidy.own_constants(graph_module)
    if fold_batch_norm:
        tidy.fold_batch_norm(graph_module)
    tidy.pool_means(graph_module)
    tidy.prune_unused(graph_module)
    outputs = graph_module.graph.output_node().all_input_nodes
    if len(outputs) != 1 or not isinstance(outputs[0].meta.get("val"), Tensor):
        raise StageFailedError(
            f"the network returns {len(outputs)} tensors; one is supported",
            fix="wrap it in a module that returns the one to quantize for, or export it to ONNX yourself",
        )
    return graph_module


def _own_constants(traced: Any) -> dict[str, Tensor]:
    """Parameters and buffers by flat, dot-free names, detached from the user's module."""
    constants: dict[str, Tensor] = {}
    copies: dict[int, nn.Parameter] = {}  # a parameter under two names stays one
    for name, parameter in traced.named_parameters(remove_duplicate=False):
        copy = copies.setdefault(id(parameter), nn.Parameter(parameter.detach().clone()))
        constants[name] = copy
    for name, buffer in traced.named_buffers():
        constants[name] = buffer.detach().clone()
    for node in traced.graph.nodes:  # tensors that forward() made itself, lifted by torch.export
        if node.op == "get_attr" and node.target not in constants:
            constants[node.target] = operator.attrgetter(node.target)(traced).detach().clone()
    return constants
