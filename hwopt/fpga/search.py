"""Choose a folding: the least latency that fits, or the least resources that keep a frame rate.

For one interval the cheapest choice of units is a knapsack with a choice a layer and a limit a resource, solved
by HiGHS through SciPy: exactly for small networks, to within a hundredth for large ones. The least interval is
found by bisection, because a longer interval never needs more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from operator import add
from time import monotonic
from typing import Any, Final

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from hwopt.core.fpga import Flow, FpgaFabric
from hwopt.errors import StageFailedError
from hwopt.fpga.design import NAMES, NOTHING, Resources, Unit, band_of, usable
from hwopt.fpga.flows import options, words_in
from hwopt.fpga.simulate import needed, simulate
from hwopt.layer_table import Layer

EXACT: Final = 4000  # combinations that are all simulated
_SMALL: Final = 1500  # units of all layers together, up to which knapsacks are solved without a gap
_TIME_LIMIT: Final = 1  # SciPy's status
_SECONDS: Final = 2.0  # for one knapsack
_BUDGET: Final = 3.0  # for all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One point of the curve of intervals: what the cheapest design of that speed takes."""

    interval: float
    resources: Resources
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search chose, and what lies beside it."""

    units: tuple[Unit, ...]
    exact: bool  # proven best by what was asked for; else balanced to within the solver's gap and time
    next_step: Step | None  # the next faster interval, which is not taken
    curve: tuple[Step, ...]


def search(
    layers: Sequence[Layer],
    fabric: FpgaFabric,
    interval: float | None = None,
    flow: Flow = Flow.FINN,
    taken: Resources = NOTHING,
) -> Found:
    """Fold a network.

    Args:
        layers: in topological order.
        fabric: the device.
        interval: cycles between frames that must be kept with the least resources; None asks for the least
            latency that fits.
        flow: whose rules a unit follows.
        taken: by what lies between the units, such as queues.
    """
    words = words_in(layers)
    choices = [options(layer, fabric, flow, words[layer.name]) for layer in layers]
    fastest = max(min(unit.cycles for unit in units) for units in choices)
    intervals = sorted({u.cycles for units in choices for u in units if u.cycles >= fastest})
    knapsack = _Knapsack(choices, fabric, flow, taken)
    if interval is not None:
        return _for_interval(knapsack, intervals, interval)
    last = len(intervals) - 1
    slowest = knapsack.cheapest(intervals[last])
    if slowest is None:
        return Found(
            units=tuple(knapsack.least_short(intervals[last])), exact=False, next_step=None, curve=()
        )
    low, high = 0, last - 1
    best: tuple[int, list[Unit]] = (last, slowest)
    while low <= high:
        middle = (low + high) // 2
        units = knapsack.cheapest(intervals[middle])
        if units is not None:
            best, high = (middle, units), middle - 1
        else:
            low = middle + 1
    index, units = best
    combinations = prod(len(c) for c in choices)
    if combinations <= EXACT:
        units = _exhaustive(knapsack)
    else:
        units = min(
            (units, knapsack.least_fill(layers, intervals[index]) or units), key=lambda u: _latency(u, fabric)
        )
    return Found(
        units=tuple(units),
        exact=combinations <= EXACT,
        next_step=_next(knapsack, intervals, index),
        curve=_curve(knapsack, intervals, index),
    )


def _for_interval(knapsack: _Knapsack, intervals: list[float], asked: float) -> Found:
    reachable = [i for i in intervals if i <= asked]
    index = len(reachable) - 1
    # No folding is as fast as asked: the fastest there is, which the design then says.
    limit = asked if reachable else intervals[0]
    units = knapsack.cheapest(limit) or knapsack.smallest(limit)
    return Found(
        units=tuple(units),
        exact=knapsack.exact,
        next_step=_next(knapsack, intervals, max(index, 0)),
        curve=_curve(knapsack, intervals, max(index, 0)),
    )


def _next(knapsack: _Knapsack, intervals: list[float], index: int) -> Step | None:
    if index == 0:
        return None
    units = knapsack.smallest(intervals[index - 1])
    return _step(knapsack, units, intervals[index - 1])


def _curve(knapsack: _Knapsack, intervals: list[float], index: int) -> tuple[Step, ...]:
    """Some intervals from the fastest that fits to the slowest, evenly in their logarithm."""
    picked = sorted({round(i) for i in np.linspace(index, len(intervals) - 1, 8)})
    return tuple(_step(knapsack, knapsack.smallest(intervals[i]), intervals[i]) for i in picked)


def _step(knapsack: _Knapsack, units: Sequence[Unit], interval: float) -> Step:
    total = reduce(add, (u.resources for u in units), Resources())
    return Step(interval=interval, resources=total, fits=knapsack.fits(total))


class _Knapsack:
    """The cheapest unit of every layer under limits."""

    def __init__(
        self, choices: Sequence[Sequence[Unit]], fabric: FpgaFabric, flow: Flow, taken: Resources
    ) -> None:
        self.choices, self.fabric = choices, fabric
        self.until = monotonic() + _BUDGET
        self.small = sum(len(units) for units in choices) <= _SMALL
        self.exact = self.small  # as long as no knapsack runs out of time
        limits = usable(fabric)
        self.names = [n for n in NAMES if n in limits]
        tables = {"lut": fabric.lut_per_lut6}
        self.limits = np.array(
            [
                max(0.0, limits[n] / band_of(fabric, flow, n).high / tables.get(n, 1.0) - getattr(taken, n))
                for n in self.names
            ]
        )
        self.flat = [unit for units in choices for unit in units]
        self.layer = np.repeat(np.arange(len(choices)), [len(units) for units in choices])
        self.amounts = np.array([[getattr(u.resources, n) for n in self.names] for u in self.flat]).T
        self.cycles = np.array([u.cycles for u in self.flat])
        self.price = (self.amounts / np.maximum(self.limits, 1.0)[:, None]).sum(0)

    def seconds(self) -> float:
        """For the next knapsack: less where the search has used up its time."""
        return min(_SECONDS, max(0.2, self.until - monotonic()))

    def fits(self, total: Resources) -> bool:
        """Whether the upper end of every resource does."""
        return all(getattr(total, n) <= most for n, most in zip(self.names, self.limits, strict=True))

    def cheapest(self, interval: float) -> list[Unit] | None:
        """The least sum of shares within the limits; None where nothing fits."""
        return self._solve(self.price, interval)

    def smallest(self, interval: float) -> list[Unit]:
        """The cheapest design, or where none fits the one that is short of the least."""
        return self._solve(self.price, interval) or self.least_short(interval)

    def least_short(self, interval: float) -> list[Unit]:
        """Where nothing fits: the design whose shortages, as shares of what may be used, add up to the least."""
        index = np.flatnonzero(self.cycles <= interval)
        kinds, count = len(self.names), len(index)
        shares = self.amounts[:, index] / np.maximum(self.limits, 1.0)[:, None]
        room = (self.limits > 0).astype(float)
        one = csr_matrix(
            (np.ones(count), (self.layer[index], np.arange(count))), (len(self.choices), count + kinds)
        )
        solved = _milp(
            np.append(1e-3 * self.price[index] / max(float(self.price[index].max()), 1e-12), np.ones(kinds)),
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(np.hstack([shares, -np.eye(kinds)]), -np.inf, room),
            ],
            integrality=np.append(np.ones(count), np.zeros(kinds)),
            bounds=Bounds(np.zeros(count + kinds), np.append(np.ones(count), np.full(kinds, np.inf))),
            options={"time_limit": self.seconds(), "mip_rel_gap": 0.03},
        )
        if solved.x is not None:
            return [self.flat[j] for j in index[solved.x[:count] > 0.5]]
        allowed = self.cycles <= interval
        return [
            self.flat[min(np.flatnonzero((self.layer == i) & allowed), key=lambda j: float(self.price[j]))]
            for i in range(len(self.choices))
        ]

    def least_fill(self, layers: Sequence[Layer], interval: float) -> list[Unit] | None:
        """The units that fill the pipeline soonest at an interval: what is left goes to the early pixels."""
        share = np.array(_fill_shares(layers))
        return self._solve(self.cycles * share[self.layer] + 1e-3 * self.price, interval)

    def _solve(self, cost: np.ndarray, interval: float) -> list[Unit] | None:
        index = np.flatnonzero(self.cycles <= interval)
        layer = self.layer[index]
        if len(np.unique(layer)) < len(self.choices):
            return None
        least = np.zeros((len(self.choices), len(self.names)))
        for i in range(len(self.choices)):
            least[i] = self.amounts[:, index[layer == i]].min(1)
        if (least.sum(0) > self.limits).any():
            return None  # not even the least of every resource alone
        one = csr_matrix((np.ones(len(index)), (layer, np.arange(len(index)))))
        scale = np.maximum(self.limits, 1.0)
        solved = _milp(
            cost[index] / max(float(cost[index].max()), 1e-12),
            constraints=[
                LinearConstraint(one, 1, 1),
                LinearConstraint(self.amounts[:, index] / scale[:, None], -np.inf, self.limits / scale),
            ],
            integrality=np.ones(len(index)),
            bounds=Bounds(0, 1),
            options={"time_limit": self.seconds(), "mip_rel_gap": 0.0 if self.small else 0.01},
        )
        self.exact = self.exact and solved.status != _TIME_LIMIT
        if solved.x is None:
            return None
        chosen = index[solved.x > 0.5]
        if len(chosen) != len(self.choices):
            raise StageFailedError("the folding search gave no whole design", fix="report it with the model")
        return [self.flat[j] for j in chosen]


def _milp(*args: Any, **kwargs: Any) -> Any:
    """SciPy's; what HiGHS prints goes to stderr, because stdout is data."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        return milp(*args, **kwargs)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _fill_shares(layers: Sequence[Layer]) -> list[float]:
    """For each layer the share of its frame that must pass before the layers behind it begin."""
    shares = {layer.name: 0.0 for layer in layers}
    for layer in layers:
        for source in layer.inputs:
            if source in shares:
                arrivals = max(1, prod(layer.in_shape[1:]))
                shares[source] = max(shares[source], float(needed(layer, arrivals)[0] + 1) / arrivals)
    return [shares[layer.name] or 1.0 for layer in layers]


def _latency(units: Sequence[Unit], fabric: FpgaFabric) -> float:
    return simulate(units, fabric.input_bits).cycles


def _exhaustive(knapsack: _Knapsack) -> list[Unit]:
    """Of all combinations that fit the one with the least latency; of equals the cheapest."""
    price = {id(u): float(p) for u, p in zip(knapsack.flat, knapsack.price, strict=True)}
    best: tuple[float, float] | None = None
    chosen: list[Unit] = []
    for units in product(*knapsack.choices):
        if knapsack.fits(reduce(add, (u.resources for u in units), Resources())):
            mark = (_latency(units, knapsack.fabric), sum(price[id(u)] for u in units))
            if best is None or mark < best:
                best, chosen = mark, list(units)
    return chosen
