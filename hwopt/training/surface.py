"""The loss around trained weights: slices, the way from float to int8, and the sharpest curvature."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwopt.core.canonical import JSON, finite_or_none

Direction = list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Loss along one direction."""

    name: str
    places: tuple[float, ...]
    losses: tuple[float, ...]

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        losses: list[JSON] = [finite_or_none(v) for v in self.losses]
        return {"name": self.name, "places": list(self.places), "losses": losses}


def random_direction(module: nn.Module, seed: int) -> Direction:
    """Gaussian, each filter as long as the network's own; norms and biases stay.

    Reference:
        Li et al., NeurIPS 2018 (visualizing the loss landscape), section 4 (filter normalization).
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for parameter in module.parameters():
        if parameter.dim() < 2:
            found.append(torch.zeros_like(parameter))
            continue
        draw = torch.randn(parameter.shape, generator=generator).flatten(1)
        own = parameter.detach().flatten(1)
        scaled = draw * own.norm(dim=1, keepdim=True) / draw.norm(dim=1, keepdim=True).clamp(min=1e-12)
        found.append(scaled.view_as(parameter))
    return found


def to_int8(module: nn.Module) -> Direction:
    """From the weights to themselves rounded to eight bits, one scale for each output channel: place 1."""
    found = []
    for parameter in module.parameters():
        weight = parameter.detach()
        if weight.dim() < 2:
            found.append(torch.zeros_like(weight))
            continue
        rows = weight.flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        found.append((((rows / scale).round() * scale) - rows).view_as(weight))
    return found


def slice_along(
    module: nn.Module, direction: Sequence[Tensor], places: Sequence[float], x: Tensor, y: Tensor, name: str
) -> Slice:
    """Mean cross-entropy in evaluation mode at ``weights + place · direction``; on a copy."""
    trial = copy.deepcopy(module).eval()
    own = [p.detach().clone() for p in trial.parameters()]
    losses = [_loss_at(trial, own, [(place, direction)], x, y) for place in places]
    return Slice(name=name, places=tuple(places), losses=tuple(losses))


def grid(
    module: nn.Module, first: Direction, second: Direction, places: Sequence[float], x: Tensor, y: Tensor
) -> list[list[float]]:
    """Loss on the square that two directions span; rows follow ``second``."""
    trial = copy.deepcopy(module).eval()
    own = [p.detach().clone() for p in trial.parameters()]
    return [[_loss_at(trial, own, [(a, first), (b, second)], x, y) for a in places] for b in places]


@torch.no_grad()
def _loss_at(
    trial: nn.Module,
    own: Sequence[Tensor],
    steps: Sequence[tuple[float, Sequence[Tensor]]],
    x: Tensor,
    y: Tensor,
) -> float:
    for index, parameter in enumerate(trial.parameters()):
        parameter.copy_(own[index])
        for place, direction in steps:
            parameter.add_(direction[index], alpha=place)
    return float(functional.cross_entropy(trial(x), y))


def top_eigenvalue(
    module: nn.Module, x: Tensor, y: Tensor, *, products: int = 20, seed: int = 0
) -> tuple[float, float]:
    """The Hessian's eigenvalue of greatest size, by power iteration, and its relative change in the last product.

    In evaluation mode, on a copy.

    Reference:
        Yao et al., 2020 (PyHessian), algorithm 2.
    """
    trial = copy.deepcopy(module).eval()
    parameters = [p for p in trial.parameters() if p.requires_grad]
    loss = functional.cross_entropy(trial(x), y)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator) for p in parameters]
    value, change = 0.0, float("inf")
    for _ in range(products):
        length = torch.sqrt(sum((v.square().sum() for v in vector), torch.zeros(())))
        vector = [v / length for v in vector]
        product = torch.autograd.grad(gradients, parameters, grad_outputs=vector, retain_graph=True)
        found = float(sum((p * v).sum() for p, v in zip(product, vector, strict=True)))
        change = abs(found - value) / max(abs(found), 1e-12)
        value, vector = found, [p.detach() for p in product]
        if change < 1e-3:
            break
    return value, change
