"""Batch norm that lives on for the first epochs of QAT, and is then folded for good.

Krishnamoorthi, "Quantizing deep convolutional networks", 2018, section 3.2.2 (batch statistics at first,
frozen later). Here the norms are put back behind the folded layers, so that nothing changes at the start:
a norm's scale and shift are the deviation and mean of what flows through it. When it is folded again, a
channel's factor goes into its weights and into their quantization scale alike, so that no code changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.insert import fit_weight, make_room_for_biases
from hwopt.quantization.nodes import argument, constant

_EPS = 1e-5


class LiveNorms:
    """A training hook: norms behind the given layers until ``epochs`` have passed.

    Args:
        layers: names of convolutions and linear layers of ``graph_module`` that had a norm and have a bias.
        samples: to measure what flows through them.
    """

    def __init__(
        self, graph_module: fx.GraphModule, layers: Sequence[str], samples: Tensor, epochs: int
    ) -> None:
        self._graph_module, self._epochs = graph_module, epochs
        self._norms: dict[str, str] = {}  # layer -> module
        graph = graph_module.graph
        nodes = {node.name: node for node in graph.nodes}
        usable = [name for name in layers if name in nodes and _is_quantized(graph_module, nodes[name])]
        statistics = _statistics(graph_module, usable, samples)
        for name in (name for name in usable if name in statistics):
            mean, var = statistics[name]
            norm = nn.BatchNorm2d(len(mean), eps=_EPS) if mean.dim() else None
            if norm is None or norm.running_mean is None or norm.running_var is None:
                continue
            with torch.no_grad():
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                norm.weight.copy_((var + _EPS).sqrt())
                norm.bias.copy_(mean)
            module = f"norm_{name}"
            graph_module.add_submodule(module, norm)
            with graph.inserting_after(nodes[name]):
                normed = graph.call_module(module, (nodes[name],))
            nodes[name].replace_all_uses_with(normed, delete_user_cb=lambda user, own=normed: user is not own)
            self._norms[name] = module
        graph_module.recompile()

    @property
    def count(self) -> int:
        """Norms that live."""
        return len(self._norms)

    def epoch(self, epoch: int) -> None:
        """Fold all norms when their time is over."""
        if epoch >= self._epochs and self._norms:
            self.fold()

    def penalty(self, share: float) -> Tensor | None:
        """No term in the loss."""
        return None

    def stepped(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the norms into weights, biases and weight scales; nothing changes in evaluation mode."""
        graph = self._graph_module.graph
        for name, module in self._norms.items():
            layer = next(node for node in graph.nodes if node.name == name)
            node = next(n for n in graph.nodes if n.op == "call_module" and n.target == module)
            norm = self._graph_module.get_submodule(module)
            _fold(self._graph_module, layer, norm)
            node.replace_all_uses_with(layer)
            graph.erase_node(node)
            self._graph_module.delete_submodule(module)
        self._norms.clear()
        self._graph_module.recompile()
        make_room_for_biases(self._graph_module)


def _is_quantized(graph_module: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether a layer has a bias, and a weight on a grid that a norm's factor can go into."""
    source, bias = argument(layer, 1), argument(layer, 2)
    if bias is None or not isinstance(source, fx.Node) or source.op != "call_module":
        return False
    return isinstance(graph_module.get_submodule(str(source.target)), FakeQuant)


def _fold(graph_module: fx.GraphModule, layer: fx.Node, norm: nn.Module) -> None:
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"{type(norm).__name__} is not a norm that was put in here")
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    source = layer.args[1]
    bias_node = layer.args[2]
    if not isinstance(source, fx.Node) or not isinstance(bias_node, fx.Node):
        raise TypeError(f"{layer.name} has no weight and bias")
    grid = graph_module.get_submodule(str(source.target)) if source.op == "call_module" else None
    weight = constant(graph_module, argument(source, 0))
    if bias_node.op == "call_module":
        bias_node = argument(bias_node, 0)
    bias = constant(graph_module, bias_node)
    if not isinstance(grid, FakeQuant) or weight is None or bias is None:
        raise TypeError(f"{layer.name} has no quantized weight or no bias")
    axis = grid.axis or 0
    weight.mul_(factor.reshape([-1 if i == axis else 1 for i in range(weight.dim())]))
    bias.copy_((bias - norm.running_mean) * factor + norm.bias)
    if grid.axis is not None and not grid.power_of_two and bool((factor > 0).all()):
        grid.log2_scale.add_(torch.log2(factor).reshape(grid.log2_scale.shape))
    else:
        fit_weight(grid, weight)  # one scale for all channels, or one that may not move freely


def _statistics(
    graph_module: fx.GraphModule, layers: Sequence[str], samples: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel of each layer's output."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if n.name in layers and isinstance(value, Tensor) and value.dim() == 4:
                found[n.name] = (value.mean((0, 2, 3)), value.var((0, 2, 3), unbiased=False))
            return value

    with torch.no_grad():
        Watch(graph_module).run(samples)
    return found
