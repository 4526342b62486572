"""Samples in an order that is a pure function of (seed, epoch), and what happens to them on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hwopt.core.dataset import Dataset
from hwopt.errors import ConfigError
from hwopt.training.settings import Augmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Tensors to train on and to validate on."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor


def split(dataset: Dataset, share: float, seed: int) -> Split:
    """Set a share of the training split aside for validation; the test split is not touched."""
    order = np.random.default_rng([seed, 0]).permutation(len(dataset.x_train))
    held = round(len(order) * share)
    train, validation = order[held:], order[:held]
    if len(train) == 0:
        raise ConfigError("no training sample is left after setting the validation share aside")
    return Split(
        x=torch.from_numpy(dataset.x_train[train]),
        y=torch.from_numpy(dataset.y_train[train]),
        x_validation=torch.from_numpy(dataset.x_train[validation]),
        y_validation=torch.from_numpy(dataset.y_train[validation]),
    )


def batches(n: int, size: int, seed: int, epoch: int, least: int = 2) -> Iterator[Tensor]:
    """Index tensors of one epoch; a last batch of fewer than ``least`` samples is dropped (batch norm needs two)."""
    order = torch.from_numpy(np.random.default_rng([seed, 1, epoch]).permutation(n))
    for chunk in torch.split(order, size):
        if len(chunk) >= min(least, n, size):
            yield chunk


def batch_count(n: int, size: int, least: int = 2) -> int:
    """How many ``batches`` gives."""
    full, rest = divmod(n, size)
    return full + (rest >= min(least, n, size) and rest > 0)


def step_seed(seed: int, step: int, purpose: int) -> int:
    """A seed of its own for every step, so that nothing random has to be remembered to resume.

    Reference:
        Steele et al., OOPSLA 2014 (SplitMix64), figure 14: the mixing function.
    """
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + purpose * 0x8CB92BA72F3D8DD7 + 1) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def seed_generators(seed: int) -> None:
    """As torch.manual_seed does for CPU and GPU, without the stack trace that it formats for an absent GPU."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def augmented(x: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Images N×C×H×W changed at random, in the order crop, flip, then rotation, zoom and shift in one.

    Bilinear; what comes in from outside is the nearest edge's value.
    """
    n, _, height, width = x.shape

    def uniform(reach: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * reach

    if how.crop:
        padded = functional.pad(x, [how.crop] * 4)
        top, left = (torch.randint(0, 2 * how.crop + 1, (n, 1, 1), generator=generator) for _ in range(2))
        rows, columns = top + torch.arange(height)[None, :, None], left + torch.arange(width)[None, None, :]
        x = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns].permute(0, 3, 1, 2)
    for word, axis in (("horizontal", 3), ("vertical", 2)):
        if how.flip in {word, "both"}:
            chosen = torch.rand(n, generator=generator) < 0.5
            x = torch.where(chosen[:, None, None, None], x.flip(axis), x)
    if how.rotate or how.zoom or how.shift:
        angle, zoom = torch.deg2rad(uniform(how.rotate)), 1 / (1 + uniform(how.zoom))
        across, down = 2 * uniform(how.shift), 2 * uniform(how.shift)
        cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
        ratio = height / width  # rotation in pixels, not in shares of unequal sides
        rows = torch.stack(
            [torch.stack([cos, -sin * ratio, across], 1), torch.stack([sin / ratio, cos, down], 1)], 1
        )
        grid = functional.affine_grid(rows.to(x.dtype), list(x.shape), align_corners=False)
        x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return x.contiguous()


def mixed(x: Tensor, alpha: float, seed: int) -> tuple[Tensor, Tensor, float]:
    """Each sample with another one: the mixture, the partners' indices, the share of the sample itself.

    Reference:
        Zhang et al., ICLR 2018 (mixup), equation 1; one share a batch, as in its code.
    """
    rng = np.random.default_rng(seed)
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(x)))
    return share * x + (1 - share) * x[partner], partner, share
