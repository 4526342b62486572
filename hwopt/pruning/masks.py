"""Zeros in place: unstructured and N:M sparsity. They save size; whether they save time is measured.

The masks are hooks of the training loop: ``epoch``, ``penalty`` and ``stepped``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hwopt.errors import ConfigError


def weights_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Kernels and matrices; biases and norms stay dense."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            yield name, parameter


def magnitude_masks(module: nn.Module, share: float, *, network: bool) -> dict[str, Tensor]:
    """Masks without the ``share`` smallest weights: of the whole network, or of every layer.

    Reference:
        Han et al., NeurIPS 2015, section 3.
    """
    weights = dict(weights_of(module))
    if not network:
        return {name: _largest(w.detach().abs(), share) for name, w in weights.items()}
    whole = torch.cat([w.detach().abs().reshape(-1) for w in weights.values()])
    kept = _largest(whole, share)
    masks, start = {}, 0
    for name, weight in weights.items():
        masks[name] = kept[start : start + weight.numel()].reshape(weight.shape)
        start += weight.numel()
    return masks


def _largest(values: Tensor, share: float) -> Tensor:
    """All but the ``share`` smallest; ties go by position, so that the count is exact."""
    gone = int(values.numel() * share)
    mask = torch.ones(values.numel(), dtype=torch.bool)
    mask[torch.argsort(values.reshape(-1), stable=True)[:gone]] = False
    return mask.reshape(values.shape)


def pattern_masks(module: nn.Module, kept: int, of: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Masks that keep the ``kept`` largest of every ``of`` neighbours along the input channels.

    Returns:
        masks by weight, and the layers that cannot have the pattern with the reason.
    Reference:
        Mishra et al., 2021 (2:4 sparsity), section 3; a layer needs a multiple of ``of`` input channels.
    """
    masks: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name, weight in weights_of(module):
        if weight.shape[1] % of:
            skipped[name] = f"{weight.shape[1]} input channels are no multiple of {of}"
            continue
        # Neighbours along the input channels, for every output and every place of the kernel.
        rows = weight.detach().abs().movedim(1, -1).reshape(-1, of)
        order = rows.argsort(dim=1, descending=True, stable=True)
        mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :kept], value=True)
        masks[name] = mask.reshape(weight.movedim(1, -1).shape).movedim(-1, 1)
    if not masks:
        raise ConfigError(
            f"no layer can have the pattern {kept}:{of}: "
            + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()),
            fix="prune single weights with sparsity",
        )
    return masks, skipped


def apply(module: nn.Module, masks: dict[str, Tensor]) -> None:
    """Put zeros where the masks say so."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


def zero_share(module: nn.Module) -> float:
    """Share of the weights that are zero."""
    values = [w.detach() for _, w in weights_of(module)]
    return sum(int((v == 0).sum()) for v in values) / max(sum(v.numel() for v in values), 1)


class KeepZeros:
    """Weights that are zero before the training stay zero."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._masks = {name: weight.detach() != 0 for name, weight in weights_of(module)}

    def epoch(self, epoch: int) -> None:
        """Nothing."""

    def penalty(self, share: float) -> Tensor | None:
        """Nothing."""

    def stepped(self) -> None:
        """Zeros again."""
        apply(self._module, self._masks)

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": dict(self._masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self._masks = dict(state["masks"])


class Gradual:
    """More and more zeros while the network trains: s·(1 - (1 - t)³), fixed after ``ramp`` of the training.

    Reference:
        Zhu and Gupta, 2017 (to prune, or not to prune), equation 1.
    """

    def __init__(
        self, module: nn.Module, share: float, *, network: bool, ramp: float, every: int = 20
    ) -> None:
        self._module, self._share, self._network = module, share, network
        self._ramp, self._every = ramp, every
        self._masks: dict[str, Tensor] = {}
        self._steps, self._done = 0, 0.0

    def epoch(self, epoch: int) -> None:
        """Nothing."""

    def penalty(self, share: float) -> Tensor | None:
        """No term; how far the training is."""
        self._done = share
        return None

    def stepped(self) -> None:
        """New masks now and then, the present ones after every step."""
        if self._done < self._ramp and self._steps % self._every == 0:
            now = self._share * (1 - (1 - self._done / self._ramp) ** 3)
            self._masks = magnitude_masks(self._module, now, network=self._network)
        elif self._done >= self._ramp and self._steps >= 0:
            self.settle()
            self._steps = -(10**12)  # fixed from here on
        self._steps += 1
        apply(self._module, self._masks)

    def state_dict(self) -> dict[str, Any]:
        """Masks and how far it is."""
        return {"masks": dict(self._masks), "steps": self._steps, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self._masks, self._steps, self._done = dict(state["masks"]), state["steps"], state["done"]

    def settle(self) -> None:
        """The whole share, whatever the schedule came to."""
        self._masks = magnitude_masks(self._module, self._share, network=self._network)
        apply(self._module, self._masks)
