"""The handwritten digits that scikit-learn carries: 1,797 images of 8×8, ten classes, no download."""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from pydantic import Field

from hwopt.core.choices import DataSource
from hwopt.core.dataset import Dataset
from hwopt.core.settings import Settings


class DigitsOptions(Settings):
    """How the digits are split."""

    test_share: Annotated[float, Field(gt=0.05, lt=0.9)] = 0.4


def load(options: DigitsOptions) -> Dataset:
    """Images N×1×8×8 in 0…1; a fixed, seeded split."""
    # Imported here and not above: reading options must not cost scikit-learn's import.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(1797).permutation(len(images))
    images, labels = images[order], labels[order]
    cut = round(len(images) * (1 - options.test_share))
    return Dataset(
        name="digits",
        x_train=images[:cut],
        y_train=labels[:cut],
        x_test=images[cut:],
        y_test=labels[cut:],
        classes=10,
    )


SOURCE: Final = DataSource(settings=DigitsOptions, load="hwopt.data.digits:load", libraries=("scikit-learn",))
