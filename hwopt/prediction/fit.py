"""From timed models to costs: which sum of multiply-accumulates, bytes and kernels explains their times best.

A roofline with its corner rounded off: the time of a kernel is the sum of its arithmetic, its traffic and a
constant, not the greatest of them. Small networks live in that corner.

Reference:
    Williams, Waterman, Patterson, "Roofline", CACM 2009; non-negative least squares: Lawson and Hanson 1974.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from hwopt.prediction.work import Kernel, totals

CALL: Final = "call"
_COVERAGE: Final = 0.9
_ROUNDS: Final = 3  # of reweighting towards relative errors
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One model of the micro-suite."""

    kernels: tuple[Kernel, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Seconds a unit of every feature, and how far from the truth predictions lie."""

    costs: Mapping[tuple[str, str], float]  # (kind and type, feature) -> seconds
    spread: float  # factor that holds nine out of ten, from models that were left out


def fit(timed: Sequence[Timed]) -> Fit:
    """Non-negative costs by weighted least squares; the spread by leaving out one model after the other.

    The spread is the conformal quantile of the absolute logarithm of the ratio: with exchangeable models it
    holds at least nine out of ten.
    """
    names = sorted({(key, f) for one in timed for key, sums in totals(one.kernels).items() for f in sums})
    columns: list[tuple[str, str]] = [*names, (CALL, "each")]
    matrix = np.stack([_row(one.kernels, columns) for one in timed])
    seconds = np.array([one.seconds for one in timed])
    kept = [index for index in range(len(columns)) if matrix[:, index].any()]
    columns, matrix = [columns[index] for index in kept], matrix[:, kept]
    residuals = []
    for index in range(len(timed)):
        others = np.arange(len(timed)) != index
        costs = _solve(matrix[others], seconds[others])
        predicted = float(matrix[index] @ costs)
        if predicted > 0:  # nothing, where no other network has such a kernel
            residuals.append(abs(float(np.log(predicted / seconds[index]))))
    rank = min(len(residuals), ceil((len(residuals) + 1) * _COVERAGE))
    return Fit(
        costs=dict(zip(columns, map(float, _solve(matrix, seconds)), strict=True)),
        spread=exp(sorted(residuals)[rank - 1]),
    )


def _row(found: Sequence[Kernel], columns: Sequence[tuple[str, str]]) -> Floats:
    sums = totals(found)
    return np.array([1.0 if key == CALL else sums.get(key, {}).get(f, 0.0) for key, f in columns])


def _solve(matrix: Floats, seconds: Floats) -> Floats:
    """Least relative error: rows are divided by the time, then by its geometric mean with the prediction."""
    weights = 1 / seconds
    scale = np.maximum((matrix * weights[:, None]).max(axis=0), 1e-300)
    for _ in range(_ROUNDS):
        found: Any = nnls(matrix * weights[:, None] / scale, seconds * weights)[0]
        costs: Floats = found / scale
        predicted = matrix @ costs
        weights = 1 / np.sqrt(seconds * np.maximum(predicted, seconds / 10))
    return costs
