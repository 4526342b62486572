"""Weights that jump between two codes while training: damp them, or freeze them.

Nagel et al., "Overcoming oscillations in quantization-aware training", ICML 2022: section 4.1, equation 5
(dampening) and section 4.2, algorithm 1 (iterative freezing).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.insert import fake_quantizers
from hwopt.quantization.nodes import argument, constant
from hwopt.quantization.settings import OscillationSettings


def weights(graph_module: fx.GraphModule) -> Iterator[tuple[FakeQuant, Tensor]]:
    """Every weight with its grid."""
    for node, grid in fake_quantizers(graph_module):
        value = constant(graph_module, argument(node, 0))
        if isinstance(value, nn.Parameter):
            yield grid, value


class Damping:
    """A training hook: pulls weights to the middle of their code, ever stronger."""

    def __init__(self, graph_module: fx.GraphModule, settings: OscillationSettings) -> None:
        self._weights = list(weights(graph_module))
        self._strength = settings.strength

    def epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def penalty(self, share: float) -> Tensor | None:
        """Distance to the grid, in units of a step, weighted by a cosine from 0 to the full strength."""
        strength = self._strength * (1 - math.cos(math.pi * share)) / 2
        total: Tensor | None = None
        for grid, weight in self._weights:
            scale = grid.effective_scale().detach()
            exact = grid.in_rows(weight) / scale
            inside = exact.clamp(grid.low, grid.high)
            distance = (inside - torch.round(inside).detach()).square().sum()
            total = distance if total is None else total + distance
        return None if total is None else total * strength

    def stepped(self) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class _Track:
    codes: Tensor
    change: Tensor  # sign of the last change of code
    frequency: Tensor
    average: Tensor
    frozen: Tensor


class Freezing:
    """A training hook: holds a weight at its usual code once it jumps too often."""

    def __init__(self, graph_module: fx.GraphModule, settings: OscillationSettings) -> None:
        self._settings = settings
        self._tracks: list[tuple[FakeQuant, Tensor, _Track]] = []
        for grid, weight in weights(graph_module):
            codes = self._codes(grid, weight)
            zeros = torch.zeros_like(codes)
            track = _Track(codes, zeros.clone(), zeros.clone(), codes.clone(), zeros.bool())
            self._tracks.append((grid, weight, track))

    def epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def penalty(self, share: float) -> Tensor | None:
        """No term in the loss."""
        return None

    @property
    def frozen_share(self) -> float:
        """Share of all weights that are frozen."""
        count = sum(int(t.frozen.sum()) for _, _, t in self._tracks)
        return count / max(sum(t.frozen.numel() for _, _, t in self._tracks), 1)

    @torch.no_grad()
    def stepped(self) -> None:
        """Count jumps after a step of the optimizer, and freeze."""
        m = self._settings.momentum
        for grid, weight, track in self._tracks:
            codes = self._codes(grid, weight)
            change = torch.sign(codes - track.codes)
            jumped = (change != 0) & (change == -track.change)
            track.frequency = m * jumped + (1 - m) * track.frequency
            average = m * codes + (1 - m) * track.average
            track.average = torch.where(track.frozen, track.average, average)
            track.change = torch.where(change != 0, change, track.change)
            track.frozen |= track.frequency > self._settings.threshold
            held = torch.round(track.average)
            track.codes = torch.where(track.frozen, held, codes)
            at = grid.from_rows(track.frozen, weight.shape)
            values = grid.from_rows(held * grid.effective_scale(), weight.shape)
            weight.copy_(torch.where(at, values, weight))

    @staticmethod
    @torch.no_grad()
    def _codes(grid: FakeQuant, weight: Tensor) -> Tensor:
        return torch.round(grid.in_rows(weight) / grid.effective_scale()).clamp(grid.low, grid.high)


def handle(graph_module: fx.GraphModule, settings: OscillationSettings) -> Damping | Freezing:
    """The hook that the settings name."""
    return Damping(graph_module, settings) if settings.method == "damp" else Freezing(graph_module, settings)
