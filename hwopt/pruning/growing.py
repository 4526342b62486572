"""Prepare a cut while the network trains: a growing penalty on what will go.

Reference:
    Wang et al., ICLR 2021 (neural pruning via growing regularization), section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwopt.pruning.cut import Keep
from hwopt.pruning.structure import Structure


class GrowingPenalty:
    """A hook of the training loop: L2 on the weights of all units that will be cut, rising linearly."""

    def __init__(self, module: nn.Module, structure: Structure, keep: Keep, strength: float) -> None:
        self._strength = strength
        parameters = dict(module.named_parameters())
        self._doomed: list[tuple[Tensor, int, Tensor]] = []
        for (name, dim), ids in structure.owners.items():
            gone = torch.from_numpy((ids >= 0) & ~keep[ids.clip(0)])
            if name in parameters and (name, dim) in structure.writers and bool(gone.any()):
                self._doomed.append((parameters[name], dim, gone.nonzero()[:, 0]))

    def epoch(self, epoch: int) -> None:
        """Nothing."""

    def penalty(self, share: float) -> Tensor | None:
        """Half the strength times the squared norm of what will go."""
        terms = [p.index_select(dim, index).square().sum() for p, dim, index in self._doomed]
        return None if not terms else 0.5 * self._strength * share * torch.stack(terms).sum()

    def stepped(self) -> None:
        """Nothing."""
