"""The shapes that promise most within a goal: a linear model of accuracy, and evolution over it.

Reference:
    Cai et al., ICLR 2020 (once-for-all), section 3.4: an accuracy predictor, a latency table, evolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwopt.stages.elastic.supernet import Shape, SuperNet

_RIDGE = 1e-3
_PARENTS = 0.25  # share of a generation
_MUTATED = 0.15  # chance of every gene


@dataclass(frozen=True, slots=True)
class Predictor:
    """Accuracy as a sum over choices, fitted to networks that were looked at."""

    sizes: tuple[int, ...]
    weights: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, net: SuperNet, shapes: Sequence[Shape], accuracies: Sequence[float]) -> Predictor:
        """Ridge regression on which choice each group has."""
        sizes = (*net.sizes, len(net.blocks) + 1)
        x = np.stack([_coded(sizes, shape) for shape in shapes])
        y = np.asarray(accuracies)
        weights = np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)
        return cls(sizes, weights)

    def __call__(self, shape: Shape) -> float:
        """Expected accuracy."""
        return float(_coded(self.sizes, shape) @ self.weights)


def _coded(sizes: Sequence[int], shape: Shape) -> npt.NDArray[np.float64]:
    parts = [np.eye(n)[i] for n, i in zip(sizes, (*shape.widths, shape.dropped), strict=True)]
    return np.concatenate([np.ones(1), *parts])


def evolve(
    net: SuperNet,
    predict: Predictor,
    cost: Callable[[Sequence[Shape]], list[float]],
    goal: float,
    *,
    population: int,
    generations: int,
    seed: int,
) -> list[tuple[Shape, float]]:
    """Shapes within the goal with their costs, the most promising first."""
    rng = np.random.default_rng([seed, 12])
    costs: dict[Shape, float] = {}

    def known(shapes: Sequence[Shape]) -> None:
        fresh = list(dict.fromkeys(s for s in shapes if s not in costs))
        costs.update(zip(fresh, cost(fresh), strict=True))

    def merit(shape: Shape) -> tuple[bool, float]:
        over = costs[shape] > goal
        return (not over, -costs[shape] if over else predict(shape))

    people = list(dict.fromkeys([net.least, *(net.random(rng) for _ in range(population - 1))]))
    known(people)
    for _ in range(generations):
        people = sorted(dict.fromkeys(people), key=merit, reverse=True)[: max(2, int(population * _PARENTS))]
        children = [_child(net, people, rng) for _ in range(population - len(people))]
        known(children)
        people += children
    fitting = [shape for shape in costs if costs[shape] <= goal]
    return [(shape, costs[shape]) for shape in sorted(fitting, key=predict, reverse=True)]


def _child(net: SuperNet, people: Sequence[Shape], rng: np.random.Generator) -> Shape:
    mother, father = (people[int(rng.integers(len(people)))] for _ in range(2))
    genes = []
    for n, a, b in zip(
        (*net.sizes, len(net.blocks) + 1),
        (*mother.widths, mother.dropped),
        (*father.widths, father.dropped),
        strict=True,
    ):
        gene = a if rng.random() < 0.5 else b
        genes.append(int(rng.integers(n)) if rng.random() < _MUTATED else gene)
    return net.shape(genes[:-1], genes[-1])
