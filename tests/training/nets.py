"""Small data sets and networks for the tests of training."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hwopt.core.dataset import Dataset
from hwopt.training.batches import Split, split


def blobs(n: int = 240) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = (rng.normal(size=(n, 4)) + 4 * np.eye(4)[y]).astype(np.float32)
    return Dataset(name="blobs", x_train=x, y_train=y, x_test=x, y_test=y, classes=3)


def split_blobs(n: int = 240, share: float = 0.2) -> Split:
    return split(blobs(n), share, 0)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit."""
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)
