"""F1 of predictions, with its interval."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.integer]


def _confusion(predicted: Labels, labels: Labels) -> npt.NDArray[np.float64]:
    """Counts by true class (rows) and predicted class."""
    classes = int(max(predicted.max(initial=0), labels.max(initial=0))) + 1
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def _f1(confusion: npt.NDArray[np.float64]) -> float:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    spread = confusion.sum(-1) + confusion.sum(-2)
    scores = np.where(spread > 0, 2 * hits / np.maximum(spread, 1e-300), 0.0)
    return float(scores[1] if len(scores) == 2 else scores.mean())


def f1_score(predicted: Labels, labels: Labels) -> float:
    """Of class 1 where there are two, else the mean over the classes (macro).

    Args:
        predicted, labels: class indices from 0, shape (n,), n ≥ 1.
    """
    return _f1(_confusion(predicted, labels))


def f1_interval(predicted: Labels, labels: Labels, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap over the samples, bias-corrected, 1,000 draws with a fixed seed.

    Reference:
        Efron, JASA 1987, section 2 (the BC interval).
    """
    table = _confusion(predicted, labels)
    n = int(table.sum())
    draws = np.random.default_rng(0).multinomial(n, table.ravel() / n, 1000)
    scores = np.sort([_f1(draw.reshape(table.shape).astype(np.float64)) for draw in draws])
    normal = NormalDist()
    below = (np.sum(scores < _f1(table)) + 0.5 * np.sum(scores == _f1(table))) / len(scores)
    shift = normal.inv_cdf(float(np.clip(below, 1e-4, 1 - 1e-4)))
    z = normal.inv_cdf(0.5 + confidence / 2)
    low, high = (normal.cdf(2 * shift + side * z) for side in (-1, 1))
    return float(np.quantile(scores, low)), float(np.quantile(scores, high))
