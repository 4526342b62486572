"""How much noise each layer alone puts on the network's output.

The layer's weight and inputs are on their grids, everything else is float. Noise powers of layers add up
to that of the whole as long as they are small: Nagel et al., 2021, section 4.4 (per-layer analysis); Dong
et al., NeurIPS 2020 (HAWQ-V2), for the same additivity in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from hwopt.core.canonical import JSON
from hwopt.quantization.assign import Assignment, Role
from hwopt.quantization.fake_quant import FakeQuant, Phase
from hwopt.quantization.fx_net import FxNet
from hwopt.quantization.insert import fake_quantizers
from hwopt.quantization.net import WEIGHTED
from hwopt.quantization.nodes import behind_padding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """One layer; ``noise`` is the power of the output's error over the power of the output."""

    layer: str  # name of its weight
    node: str
    noise: float
    weights: int
    macs: int

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "layer": self.layer,
            "node": self.node,
            "noise": self.noise,
            "weights": self.weights,
            "macs": self.macs,
        }


def layer_noise(
    reference: fx.GraphModule, twin: fx.GraphModule, table: Assignment, samples: Tensor
) -> list[LayerNoise]:
    """Noise of every weighted layer of ``twin``, calibrated.

    Args:
        reference: the float graph that ``twin`` was made from.
        samples: batch first, held in memory; one pass over them a layer.
    """
    nodes = {node.name: node for node in twin.graph.nodes}
    shapes = {node.name: node.meta.get("val") for node in reference.graph.nodes}
    ops = {op.name: op for op in FxNet(reference).ops}
    grids = [grid for _, grid in fake_quantizers(twin)]
    result: list[LayerNoise] = []
    with torch.no_grad():
        exact = _outputs(reference, samples)
        power = float(exact.square().mean())
        try:
            for decision in table.decisions:
                if decision.role is not Role.WEIGHT or decision.operator not in WEIGHTED:
                    continue
                for grid in grids:
                    grid.mode = Phase.OFF
                for source in map(behind_padding, nodes[decision.node].all_input_nodes):
                    grid_here = _grid(twin, source)
                    if grid_here is not None:
                        grid_here.mode = Phase.QUANTIZE
                noise = float((_outputs(twin, samples) - exact).square().mean()) / max(power, 1e-30)
                size = shapes[decision.tensor].numel()
                # A weight works once at every position: of the output, or of the input where transposed.
                op = ops[decision.node]
                turned = op.kind == "ConvTranspose"
                values = shapes[op.inputs[0] if turned else decision.node].shape[1:]
                channels = shapes[decision.tensor].shape[(op.in_axis if turned else op.axis) or 0]
                positions = int(torch.Size(values).numel()) // int(channels)
                result.append(
                    LayerNoise(
                        layer=decision.tensor,
                        node=decision.node,
                        noise=noise,
                        weights=size,
                        macs=size * positions,
                    )
                )
        finally:
            for grid in grids:
                grid.mode = Phase.QUANTIZE
    return result


def _outputs(graph_module: fx.GraphModule, samples: Tensor) -> Tensor:
    return torch.cat([graph_module(chunk) for chunk in torch.split(samples, 128)])


def _grid(twin: fx.GraphModule, node: fx.Node) -> FakeQuant | None:
    module = twin.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, FakeQuant) else None
