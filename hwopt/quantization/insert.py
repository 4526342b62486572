"""Apply the table: put fake quantizers into the graph, calibrate them, and make the deployed twin."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwopt.core.hardware import QuantizationScheme
from hwopt.errors import ConfigError, StageFailedError
from hwopt.numerics import scales
from hwopt.quantization.assign import Assignment, Role, assign
from hwopt.quantization.fake_quant import BiasQuant, Constant, FakeQuant, Mode
from hwopt.quantization.graph import argument, constant, quiet_exporters


def insert(graph_module: fx.GraphModule, scheme: QuantizationScheme) -> Assignment:
    """Put a fake quantizer at every tensor of ``assign``'s table, in place; returns the table."""
    table = assign(graph_module, scheme)
    graph = graph_module.graph
    nodes = {node.name: node for node in graph.nodes}
    pow2 = scheme.scale == "power_of_two"
    grids: dict[str, str] = {}  # tensor -> module name
    for decision in table.decisions:
        if decision.role is not Role.ACTIVATION or decision.scheme is None:
            continue
        node = nodes[decision.tensor]
        if decision.shares is None:
            grids[decision.tensor] = f"grid_{decision.tensor}"
            graph_module.add_submodule(
                grids[decision.tensor],
                FakeQuant(decision.scheme, power_of_two=pow2, ceiling=decision.ceiling),
            )
        else:
            grids[decision.tensor] = grids[decision.shares]
        readers = table.readers.get(decision.tensor)
        users = [user for user in node.users if readers is None or user.name in readers]
        with graph.inserting_after(node):
            quantized = graph.call_module(grids[decision.tensor], (node,))
        for user in users:
            user.replace_input_with(node, quantized)
    for decision in table.decisions:
        if decision.role is Role.ACTIVATION or decision.scheme is None:
            continue
        node, reader = nodes[decision.tensor], nodes[decision.node]
        if decision.role is Role.WEIGHT:
            tensor = constant(graph_module, node)
            if tensor is None:
                raise StageFailedError(f"the weight {decision.tensor} is not a constant of the graph")
            channels = tensor.shape[decision.axis] if decision.axis is not None else 1
            module: nn.Module = FakeQuant(
                decision.scheme, axis=decision.axis, channels=channels, rank=tensor.dim(), power_of_two=pow2
            )
        else:
            module = BiasQuant(
                _grid_in_front(graph_module, argument(reader, 0)),
                _grid_in_front(graph_module, argument(reader, 1)),
            )
        # A bias belongs to one call: its scale follows from the input of that call.
        one_call = decision.role is Role.BIAS
        name = f"grid_{decision.tensor}" + (f"_{reader.name}" if one_call else "")
        graph_module.add_submodule(name, module)
        with graph.inserting_after(node):
            quantized = graph.call_module(name, (node,))
        for user in [reader] if one_call else [user for user in node.users if user.op == "call_function"]:
            user.replace_input_with(node, quantized)
    graph.lint()
    graph_module.recompile()
    return table


def _grid_in_front(graph_module: fx.GraphModule, node: Any) -> FakeQuant:
    module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, FakeQuant):
        raise StageFailedError(f"{node.name} feeds an integer operator but has no grid")
    return module


def fake_quantizers(graph_module: fx.GraphModule) -> Iterator[tuple[fx.Node, FakeQuant]]:
    """Every fake quantizer with the first node that calls it."""
    seen: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target not in seen:
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, FakeQuant):
                seen.add(str(node.target))
                yield node, module


def calibrate(graph_module: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Set every scale and zero point: activations from ``batches``, weights from themselves, both by MSE.

    Memory does not grow with the number of samples. Raises ConfigError for an empty or constant set.
    """
    pairs = list(fake_quantizers(graph_module))
    for node, grid in pairs:
        grid.mode = Mode.OBSERVE
        is_weight = constant(graph_module, argument(node, 0)) is not None
        grid.histogram = None if is_weight else scales.Histogram()
    samples = 0
    with torch.no_grad():
        for batch in batches:
            graph_module(batch)
            samples += len(batch)
    if samples == 0:
        raise ConfigError(
            "the calibration set is empty", fix="give at least one sample; 256 is a good number"
        )
    for node, grid in pairs:
        weight = constant(graph_module, argument(node, 0))
        if weight is not None:
            _fit_weight(grid, weight)
        elif grid.histogram is not None:
            if grid.histogram.low == grid.histogram.high:
                _refuse_constant(node, grid.histogram)
            _fit_activation(grid, grid.histogram)
        grid.histogram = None
        grid.mode = Mode.QUANTIZE
    _make_room_for_biases(graph_module)


def _make_room_for_biases(graph_module: fx.GraphModule) -> None:
    """Raise the scale of channels whose weights are so small that int32 could not hold their bias."""
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        bias = constant(graph_module, argument(node, 0)) if isinstance(module, BiasQuant) else None
        if isinstance(module, BiasQuant) and bias is not None:
            module.make_room(bias)


def _refuse_constant(node: fx.Node, histogram: scales.Histogram) -> None:
    source = argument(node, 0)
    if isinstance(source, fx.Node) and source.op == "placeholder":
        raise ConfigError(
            f"every calibration sample holds the single value {histogram.low:g}",
            fix="calibrate on real samples of the training split",
        )


def _fit_weight(grid: FakeQuant, weight: Tensor) -> None:
    w = weight.detach().numpy().astype(np.float64)
    rows = (
        w.reshape(1, -1)
        if grid.axis is None
        else np.moveaxis(w, grid.axis, 0).reshape(w.shape[grid.axis], -1)
    )
    codes = (grid.low, grid.high)
    fitted = scales.mse_symmetric_scale(rows, codes, pow2=grid.power_of_two)
    fitted = np.where(np.abs(rows).max(axis=1) == 0, 1.0, fitted)  # any grid holds zeros
    grid.set_scale(torch.as_tensor(fitted))


def _fit_activation(grid: FakeQuant, histogram: scales.Histogram) -> None:
    codes = (grid.low, grid.high)
    if histogram.low == histogram.high == 0.0:
        grid.set_scale(
            1.0
        )  # nothing but zeros, as behind a dead ReLU: any grid holds them, this one any bias
        return
    low, high = scales.mse_range(histogram, codes, symmetric=grid.scheme.symmetric)
    if grid.scheme.symmetric:
        scale, zero = float(scales.symmetric_scale(np.asarray(max(-low, high)), codes)), 0
    else:
        scale, zero = scales.affine_scale(low, high, codes)
    if grid.power_of_two:
        trials = [2.0 ** (np.ceil(np.log2(scale)) - k) for k in range(3)]
        seen = histogram.counts > 0
        values, counts = histogram.centers[seen], histogram.counts[seen]
        scale = min(
            trials,
            key=lambda s: float(
                np.sum(counts * (values - scales.fake_quantize(values, s, zero, codes)) ** 2)
            ),
        )
    grid.set_scale(scale)
    grid.zero_point.fill_(zero)


def deployed(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose weights and biases are stored as integers; equal to the original bit for bit."""
    with quiet_exporters():  # copying torch.export's tree specs warns about itself
        twin = copy.deepcopy(graph_module)
    graph = twin.graph
    # Biases first: their grid is computed from the weights' grids, which are still there.
    nodes = [node for node in graph.nodes if node.op == "call_module"]
    for wanted in (BiasQuant, FakeQuant):
        for node in nodes:
            module = twin.get_submodule(str(node.target)) if node.op == "call_module" else None
            value = constant(twin, argument(node, 0)) if isinstance(module, wanted) else None
            if value is None:
                continue
            if isinstance(module, FakeQuant):
                scale, axis = module.effective_scale().flatten(), module.axis
                stored = Constant(module.codes(value), scale if axis is not None else scale.reshape(()), axis)
            elif isinstance(module, BiasQuant):
                scale = module.scale
                axis = 0 if scale.numel() > 1 else None
                stored = Constant(module.codes(value), scale if axis == 0 else scale.reshape(()), axis)
            name = f"{node.name}_stored"
            twin.add_submodule(name, stored)
            with graph.inserting_before(node):
                replacement = graph.call_module(name, ())
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    twin.recompile()
    return twin
