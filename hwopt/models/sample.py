"""Inputs to try a network with, before there is data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hwopt.core.dataset import tokens_of


def example(sample_shape: Sequence[int], n: int = 2, device: str = "cpu") -> Tensor:
    """``n`` samples: zeros, or the first token again and again."""
    if tokens_of(sample_shape):
        return torch.ones(n, *sample_shape, dtype=torch.int64, device=device)
    return torch.zeros(n, *sample_shape, device=device)


def free_axes(sample_shape: Sequence[int]) -> tuple[dict[int, Any]]:
    """What torch.export leaves open: the batch, and the length of token sequences."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if tokens_of(sample_shape):
        axes[1] = torch.export.Dim("length", min=1)
    return (axes,)


def trimmed(x: Tensor) -> Tensor:
    """Token sequences without the padding that all of them share; anything else as it is."""
    if x.is_floating_point() or x.dim() != 2:
        return x
    used = int((x != 0).any(0).sum())
    return x[:, : max(1, used)] if not bool((x[:, max(1, used) :] != 0).any()) else x
