"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of the members' logits; it takes as long as all of them together.

    Reference:
        Lakshminarayanan et al., NeurIPS 2017 (deep ensembles); logits are averaged, which integers can follow.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, N×classes."""
        return torch.stack([member(x) for member in self.members]).mean(0)
