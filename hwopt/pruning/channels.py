"""Channel pruning over a dependency graph.

Torch-Pruning (Fang et al., CVPR 2023, DepGraph) groups the channels that must be cut together. Which and how
many is decided here: importance summed over the group, widths rounded to what the hardware likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from hwopt.core.canonical import JSON
from hwopt.errors import ConfigError, StageFailedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One group of coupled channels and what was kept of it."""

    layer: str  # the layer whose outputs define the group
    before: int
    after: int
    coupled: int  # layers that lose channels with it

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"layer": self.layer, "before": self.before, "after": self.after, "coupled": self.coupled}


def width_after(width: int, ratio: float, multiple: int, least: int) -> int:
    """Channels to keep of ``width``: the nearest multiple to ``width · (1 - ratio)``, never all gone.

    Nearest and not floor: flooring 100 channels at ratio 0.36 to a multiple of 64 would keep none.
    """
    wanted = width * (1 - ratio)
    kept = max(least, multiple * round(wanted / multiple))
    return min(width, max(1, kept))


def prune_channels(
    module: nn.Module, sample_shape: Sequence[int], *, ratio: float, multiple: int, least: int
) -> list[Cut]:
    """Cut ``ratio`` of the channels of every group, in place.

    Args:
        module: float network; its last linear layer keeps its outputs.
        sample_shape: shape of one sample.
        ratio: share of channels to remove, 0 < ratio < 1.
        multiple: kept widths are multiples of it (where the layer is at least that wide).
        least: least width of a layer.
    Raises:
        StageFailedError: the dependency graph cannot be built.
        ConfigError: nothing can be cut.
    """
    example = torch.zeros(2, *sample_shape)
    module.eval()
    keep_whole = _output_layers(module, example)
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # the graph is traced through autograd
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(module, example)
        groups = list(
            graph.get_all_groups(ignored_layers=keep_whole, root_module_types=[nn.Conv2d, nn.Linear])
        )
    except Exception as error:  # Torch-Pruning raises whatever the traced model raises
        raise StageFailedError(
            f"the dependency graph of the model cannot be built: {str(error).splitlines()[0]}",
            fix="layers must be torch modules called once each, with shapes taken from tensors",
        ) from error
    names = {layer: name for name, layer in module.named_modules()}
    cuts: list[Cut] = []
    for group in groups:
        root = group[0].dep.target.module
        width = graph.get_out_channels(root)
        keep = width_after(width, ratio, multiple, least)
        if keep < width:
            importance = _importance(group, width)
            remove = torch.argsort(importance)[: width - keep].sort().values.tolist()
            whole = graph.get_pruning_group(root, group[0].dep.handler, remove)
            if not graph.check_pruning_group(whole):
                raise StageFailedError(f"cutting {names[root]} would leave a coupled layer without channels")
            whole.prune()
        cuts.append(Cut(layer=names[root], before=width, after=keep, coupled=len(group) - 1))
    if all(cut.before == cut.after for cut in cuts):
        raise ConfigError(
            f"nothing can be cut at ratio {ratio:g}: every width rounds back to itself "
            f"(multiples of {multiple}, at least {least})",
            fix="raise the ratio, or lower channel_multiple of the hardware profile",
        )
    with torch.no_grad():
        module(example)
    return cuts


def _output_layers(module: nn.Module, example: Tensor) -> list[nn.Module]:
    """Layers whose output is the network's output: their width is the number of classes."""
    last: list[nn.Module] = []

    def remember(layer: nn.Module, inputs: Any, output: Any) -> None:
        last.append(layer)

    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(remember) for layer in layers]
    with torch.no_grad():
        module(example)
    for handle in handles:
        handle.remove()
    return last[-1:]


def _importance(group: Any, width: int) -> Tensor:
    """Mean over the group's layers of the L2 norm of each channel's weights, each normalized by its mean.

    Li et al., ICLR 2017 (filter norms), summed over coupled layers as in DepGraph, section 3.3.
    """
    total = torch.zeros(width)
    for channel_of in _weights(group):
        norm = channel_of.reshape(len(channel_of), -1).norm(dim=1)
        if len(norm) != width and len(norm) % width == 0:
            norm = norm.reshape(width, -1).norm(dim=1)  # flattened spatial positions of one channel
        if len(norm) == width:
            total += norm / norm.mean().clamp_min(1e-12)
    return total


def _weights(group: Any) -> Iterator[Tensor]:
    for item in group:
        layer, handler = item.dep.target.module, item.dep.handler.__name__
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        is_input = "in_channels" in handler and weight.dim() > 1 and weight.shape[1] > 1
        yield weight.detach().transpose(0, 1) if is_input else weight.detach()
