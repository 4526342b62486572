"""A data set in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int64]


class SampleShape(tuple[int, ...]):
    """Shape of one sample without the batch axis; that of token sequences also knows how many tokens there are.

    A length is then the longest one: networks take any.
    """

    tokens: int

    def __new__(cls, shape: Iterable[int], tokens: int = 0) -> SampleShape:
        """``tokens``: size of the vocabulary; 0 for samples that are numbers."""
        made = super().__new__(cls, shape)
        made.tokens = tokens
        return made


def tokens_of(shape: object) -> int:
    """Size of the vocabulary that a sample's tokens come from; 0 for samples that are numbers."""
    return shape.tokens if isinstance(shape, SampleShape) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Train and test split of a classification task.

    ``x_*`` are float32, first axis samples: N×C×H×W for images, N×F for tables; or int64 tokens N×L, padded
    behind with 0, where there is a ``vocabulary`` (position is token). ``y_*`` are int64 class
    indices in ``0 … classes-1``. The test split is read by export (parity) and evaluation only;
    nothing is trained, calibrated or chosen on it.
    """

    name: str
    x_train: Array
    y_train: Labels
    x_test: Array
    y_test: Labels
    classes: int
    vocabulary: tuple[str, ...] = ()
    vectors: Floats | None = None  # a row for each token, to start the embedding with
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the record

    @property
    def sample_shape(self) -> SampleShape:
        """Shape of one sample, without the batch axis."""
        return SampleShape(self.x_train.shape[1:], len(self.vocabulary))
