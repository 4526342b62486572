"""A data set whose test split is a part of its training split: what is searched on never sees the real one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwopt.core.dataset import Array, Dataset
from hwopt.core.search import Holdout
from hwopt.errors import ConfigError


def held_out(dataset: Dataset, holdout: Holdout) -> Dataset:
    """``dataset`` with one fold for a test split and the rest to train on; classes are spread evenly.

    Raises:
        ConfigError: fewer samples than folds.
    """
    mine = fold_of(dataset.y_train, holdout) == holdout.fold
    if not mine.any() or mine.all():
        raise ConfigError(
            f"{len(mine)} training samples do not make {holdout.folds} folds",
            fix="lower search.validation.folds",
        )
    return replace(
        dataset,
        x_train=dataset.x_train[~mine],
        y_train=dataset.y_train[~mine],
        x_test=dataset.x_train[mine],
        y_test=dataset.y_train[mine],
    )


def fold_of(labels: Array, holdout: Holdout) -> Array:
    """Fold of every sample: shuffled, then dealt out class by class."""
    order = np.random.default_rng([holdout.seed, 7]).permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[dealt] = np.arange(len(labels)) % holdout.folds
    return folds
