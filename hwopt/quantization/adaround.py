"""AdaRound: learn for every weight whether to round up or down.

Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020: equation 21 (soft
rounding by a rectified sigmoid), equation 24 (the term that makes it decide), equation 25 (the layer's
output with quantized inputs against its float output).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from hwopt.core.stage import Progress
from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.nodes import CONVOLUTIONS, argument, constant
from hwopt.quantization.settings import AdaRoundSettings

_ZETA, _GAMMA = 1.1, -0.1  # the stretch of the rectified sigmoid, section 4.2
_BETA = (20.0, 2.0)  # sharpness of the deciding term, from start to end


def adaround(
    reference: fx.GraphModule,
    quantized: fx.GraphModule,
    samples: Tensor,
    settings: AdaRoundSettings,
    *,
    seed: int,
    progress: Progress,
) -> int:
    """Round the weights of ``quantized``, calibrated, layer by layer, in place; the number of layers.

    Args:
        reference: the float graph that ``quantized`` was made from.
        samples: calibration samples, batch first; a layer's inputs and outputs on them are held in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [node for node in quantized.graph.nodes if _weight_grid(quantized, node) is not None]
    for index, node in enumerate(layers):
        grid = _weight_grid(quantized, node)
        weight = constant(quantized, argument(node.args[1], 0))
        if grid is None or weight is None:
            continue
        inputs = _values(quantized, node.args[0].name, samples)
        outputs = _values(reference, node.name, samples)
        with torch.no_grad():
            weight.copy_(_learn(node, quantized, grid, weight, inputs, outputs, settings, generator))
        progress(f"adaround: layer {index + 1}/{len(layers)}")
    return len(layers)


def _weight_grid(graph_module: fx.GraphModule, node: fx.Node) -> FakeQuant | None:
    is_layer = node.op == "call_function" and (
        node.target in CONVOLUTIONS or node.target is torch.ops.aten.linear.default
    )
    source: Any = argument(node, 1) if is_layer else None
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return None
    module = graph_module.get_submodule(str(source.target))
    return module if isinstance(module, FakeQuant) and module.in_axis is None else None


def _values(graph_module: fx.GraphModule, name: str, samples: Tensor) -> Tensor:
    """A tensor of the graph on all samples."""
    found: list[Tensor] = []
    net = FxNet(graph_module)
    batches = torch.split(samples, 64)
    net.observe(batches, [name], lambda _, value: found.append(torch.from_numpy(value)))
    return torch.cat(found)


def _learn(
    node: fx.Node,
    graph_module: fx.GraphModule,
    grid: FakeQuant,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    settings: AdaRoundSettings,
    generator: torch.Generator,
) -> Tensor:
    scale = grid.effective_scale().detach()
    exact = weight.detach() / scale
    floor = torch.floor(exact)
    rest = (exact - floor).clamp(1e-4, 1 - 1e-4)
    start = -torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1)
    v = nn.Parameter(start)
    optimizer = torch.optim.Adam([v], lr=settings.lr)
    bias = _bias(graph_module, node)
    iterations = settings.iterations
    quiet = int(settings.warmup * iterations)
    with torch.enable_grad():
        for step in range(iterations):
            index = torch.randint(len(inputs), (settings.batch_size,), generator=generator)
            h = _rectified(v)
            soft = (floor + h).clamp(grid.low, grid.high) * scale
            y = node.target(inputs[index], soft, bias, *node.args[3:])  # type: ignore[operator]
            loss = (y - outputs[index]).square().flatten(1).sum(1).mean()
            if step >= quiet:
                share = (step - quiet) / max(iterations - quiet, 1)
                beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - share)
                loss = loss + settings.regularization * (1 - (2 * h - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    hard = (floor + (_rectified(v.detach()) >= 0.5)).clamp(grid.low, grid.high) * scale
    return hard.detach()


def _rectified(v: Tensor) -> Tensor:
    return (torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def _bias(graph_module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    source = argument(node, 2)
    if isinstance(source, fx.Node) and source.op == "call_module":
        source = argument(source, 0)
    value = constant(graph_module, source)
    return None if value is None else value.detach()
