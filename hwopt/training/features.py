"""Feature matching: the student looks where the teacher looks, whatever their widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.errors import ConfigError


class AttentionTransfer:
    """A hook of the training loop: distance of normalized activation maps, added to the loss.

    A map is the sum of squares over the channels, so that a pruned student and its teacher have maps of one
    size.

    Args:
        layers: names of modules that both networks have; none means the last convolution at every resolution.
    Raises:
        ConfigError: a layer that one of the two has not, or whose output has no positions.
    Reference:
        Zagoruyko and Komodakis, ICLR 2017 (paying more attention to attention), equation 2.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, layers: Sequence[str], weight: float, sample: Tensor
    ) -> None:
        self._teacher, self._weight = teacher.eval(), weight
        chosen = list(layers) or _last_of_each_size(teacher, sample)
        self._here: dict[str, Tensor] = {}
        self._there: dict[str, Tensor] = {}
        self._input: Tensor | None = None
        self._handles = [student.register_forward_pre_hook(self._remember)]
        for network, found, whose in ((student, self._here, "network"), (teacher, self._there, "teacher")):
            modules = dict(network.named_modules())
            for name in chosen:
                if name not in modules:
                    raise ConfigError(
                        f"the {whose} has no layer {name!r} to match features at", fix="see distill.layers"
                    )
                self._handles.append(modules[name].register_forward_hook(_into(found, name)))

    def close(self) -> None:
        """Take the hooks out of both networks."""
        for handle in self._handles:
            handle.remove()

    def epoch(self, epoch: int) -> None:
        """Nothing."""

    def penalty(self, share: float) -> Tensor | None:
        """Of the batch that the student has just seen."""
        if self._input is None or not self._here:
            return None
        mine = dict(self._here)
        with torch.no_grad():
            self._teacher(self._input)
        for name, value in mine.items():
            if value.shape[2:] != self._there[name].shape[2:]:
                raise ConfigError(
                    f"features at {name}: {list(value.shape[2:])} positions, the teacher has "
                    f"{list(self._there[name].shape[2:])}",
                    fix="name layers of equal resolution in distill.layers",
                )
        apart = [_map(value) - _map(self._there[name]) for name, value in mine.items()]
        terms = [difference.square().sum(1).mean() for difference in apart]
        return self._weight * torch.stack(terms).mean()

    def stepped(self) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""

    def _remember(self, module: nn.Module, inputs: Any) -> None:
        self._input = inputs[0]


def _map(value: Tensor) -> Tensor:
    """Batch × positions, each row of length one."""
    if value.dim() < 3:
        raise ConfigError(f"a layer of shape {list(value.shape)} has no positions to match features at")
    return functional.normalize(value.square().mean(1).flatten(1), dim=1)


def _into(found: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[name] = output

    return hook


def _last_of_each_size(network: nn.Module, sample: Tensor) -> list[str]:
    """The last convolution at every resolution."""
    sizes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):

            def hook(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                sizes[name] = tuple(output.shape[2:])

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        network(sample)
    for handle in handles:
        handle.remove()
    last = {size: name for name, size in sizes.items()}
    if not last:
        raise ConfigError("the network has no convolution to match features at", fix="name distill.layers")
    return list(last.values())
