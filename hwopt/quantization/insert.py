"""Apply the table: put fake quantizers into the graph, calibrate them, and make the deployed twin."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from hwopt.core.hardware import LayerRule, QuantizationScheme
from hwopt.errors import ConfigError, StageFailedError
from hwopt.quantization.assign import Assignment, Role, assign
from hwopt.quantization.fake_quant import BiasQuant, Constant, DynamicQuant, FakeQuant, Phase
from hwopt.quantization.fit import activation_grid, new_observer, weight_scale
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.graph import quiet_exporters
from hwopt.quantization.nodes import argument, behind_padding, constant, is_zero_padding
from hwopt.quantization.settings import PtqSettings
from hwopt.quantization.tidy import split_biases


def insert(
    graph_module: fx.GraphModule, scheme: QuantizationScheme, rules: Sequence[LayerRule] = ()
) -> Assignment:
    """Put a fake quantizer at every tensor of ``assign``'s table, in place; returns the table."""
    if scheme.bias == "apart":
        split_biases(graph_module)
    table = assign(FxNet(graph_module), scheme, rules)
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
            grid = (
                DynamicQuant()
                if decision.dynamic
                else FakeQuant(decision.scheme, power_of_two=pow2, ceiling=decision.ceiling)
            )
            graph_module.add_submodule(grids[decision.tensor], grid)
        else:
            grids[decision.tensor] = grids[decision.shares]
        readers = table.readers.get(decision.tensor)
        users = [
            user
            for user in node.users
            if readers is None
            or user.name in readers
            or (is_zero_padding(user) and any(reader.name in readers for reader in user.users))
        ]
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
            module: nn.Module = FakeQuant(
                decision.scheme,
                axis=decision.axis,
                in_axis=decision.in_axis,
                shape=tensor.shape,
                power_of_two=pow2,
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
        for user in [reader] if one_call else [user for user in node.users if user.name in table.chosen]:
            user.replace_input_with(node, quantized)
    graph.lint()
    graph_module.recompile()
    return table


def _grid_in_front(graph_module: fx.GraphModule, node: Any) -> FakeQuant:
    node = behind_padding(node)
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


def calibrate(
    graph_module: fx.GraphModule,
    batches: Iterable[Tensor],
    settings: PtqSettings | None = None,
) -> None:
    """Set every scale and zero point as ``settings`` say.

    Memory does not grow with the number of samples. Raises ConfigError for an empty or constant set.
    """
    settings = settings or PtqSettings()
    pairs = list(fake_quantizers(graph_module))
    for node, grid in pairs:
        grid.mode = Phase.OBSERVE
        is_weight = constant(graph_module, argument(node, 0)) is not None
        grid.observer = None if is_weight else new_observer(settings.observer)
    samples = 0
    with torch.no_grad():
        for batch in batches:
            try:
                graph_module(batch)
            except ValueError as error:
                raise ConfigError(str(error), fix="remove the samples that hold NaN or infinity") from None
            samples += len(batch)
    if samples == 0:
        raise ConfigError(
            "the calibration set is empty", fix="give at least one sample; 256 is a good number"
        )
    for node, grid in pairs:
        weight = constant(graph_module, argument(node, 0))
        if weight is not None:
            fit_weight(grid, weight, settings.weight_range)
        elif grid.observer is not None:
            if grid.observer.low == grid.observer.high:
                _refuse_constant(node, grid.observer.low)
            scale, zero = activation_grid(
                grid.observer, grid.scheme, pow2=grid.power_of_two, ceiling=grid.ceiling
            )
            grid.set_scale(scale)
            grid.set_zero_point(zero)
        grid.observer = None
        grid.mode = Phase.QUANTIZE
    make_room_for_biases(graph_module)


def make_room_for_biases(graph_module: fx.GraphModule) -> None:
    """Raise the scale of channels whose weights are so small that int32 could not hold their bias."""
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        bias = constant(graph_module, argument(node, 0)) if isinstance(module, BiasQuant) else None
        if isinstance(module, BiasQuant) and bias is not None:
            module.make_room(bias)


def _refuse_constant(node: fx.Node, value: float) -> None:
    source = argument(node, 0)
    if isinstance(source, fx.Node) and source.op == "placeholder":
        raise ConfigError(
            f"every calibration sample holds the single value {value:g}",
            fix="calibrate on real samples of the training split",
        )


def fit_weight(grid: FakeQuant, weight: Tensor, reach: Literal["mse", "max"] = "mse") -> None:
    """Set the scales of a weight's grid."""
    fitted = weight_scale(
        weight.detach().numpy(),
        grid.scheme,
        grid.axis,
        grid.in_axis,
        pow2=grid.power_of_two,
        reach=reach,
    )
    grid.set_scale(torch.as_tensor(fitted))


def _stored(grid: FakeQuant, weight: Tensor) -> Constant:
    """A weight as the codes that its grid gives."""
    scale, codes = grid.effective_scale(), grid.codes(weight)
    if grid.axis is None:
        return Constant(codes, scale.reshape(()), None)
    if grid.in_axis is None:
        return Constant(codes, scale.flatten(), grid.axis)
    scale = scale.squeeze(-1).movedim((0, 1), (grid.axis, grid.in_axis))
    return Constant(codes, scale, grid.in_axis, grid.scheme.block)


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
                stored = _stored(module, value)
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
