"""How wide each group becomes: by a ratio, or so that a cost meets its goal.

The cost may be a latency measured on the device, an estimate, or multiply-accumulates: anything that answers
for several widths at once, as a share of the network that the search starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, log
from typing import Final

import numpy as np
import numpy.typing as npt

from hwopt.core.hardware import Pruning
from hwopt.pruning.importance import Scores
from hwopt.pruning.structure import Group, Structure

Widths = dict[str, int]  # units by group
Cost = Callable[[Sequence[Mapping[str, int]]], list[float]]

_STRIDE: Final = 0.8  # a trial narrows a group to about this share
_PACE: Final = 0.8  # of the cost, that one round may take away
_ROUNDS: Final = 60
_GAIN: Final = 1e-6  # of importance, that an exchange must bring: less is rounding
_EXCHANGED: Final = 4  # groups on either side of an exchange
CLOSE: Final = 0.97  # a share of the goal that is near enough to stop widening again


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Widths and what they cost by the last look."""

    widths: Widths
    cost: float  # share of the start
    met: bool
    rounds: int


def legal_widths(group: Group, rules: Pruning) -> list[int]:
    """Numbers of units that the device likes, ascending; the full width is always one."""
    step = rules.channel_multiple // gcd(rules.channel_multiple, group.channels)
    least = max(step, -(-rules.least_channels // group.channels))
    return [w for w in range(step, group.width, step) if w >= least] + [group.width]


def nearest(group: Group, wanted: float, rules: Pruning) -> int:
    """The legal width nearest to ``wanted`` units; of two as near, the wider."""
    return min(legal_widths(group, rules), key=lambda w: (abs(w - wanted), -w))


def uniform(structure: Structure, kept: float, rules: Pruning, first: Mapping[str, int]) -> Widths:
    """Every group keeps the same share of its ``first`` width."""
    return {g.layer: nearest(g, first[g.layer] * kept, rules) for g in structure.groups}


def ranked(
    structure: Structure,
    scores: Scores,
    ratio: float,
    rules: Pruning,
    fixed: Mapping[str, int] | None = None,
) -> Widths:
    """The weakest channels of the whole network go, until their share is ``ratio``; widths are then rounded.

    Rounding moves the total; the threshold is solved for again so that the share is met as nearly as the
    legal widths allow.
    """
    total = sum(g.width * g.channels for g in structure.groups)
    levels = np.unique(np.concatenate([_comparable(scores[g.layer]) for g in structure.groups]))

    def at(level: float) -> Widths:
        kept = {g.layer: float((_comparable(scores[g.layer]) >= level).sum()) for g in structure.groups}
        return {g.layer: nearest(g, kept[g.layer], rules) for g in structure.groups} | dict(fixed or {})

    def gone(widths: Widths) -> float:
        return 1 - sum(widths[g.layer] * g.channels for g in structure.groups) / total

    low, high = 0, len(levels) - 1
    while low < high:  # the share that goes rises with the level
        middle = (low + high) // 2
        if gone(at(float(levels[middle]))) < ratio:
            low = middle + 1
        else:
            high = middle
    near = [at(float(levels[i])) for i in {max(low - 1, 0), low}]
    return min(near, key=lambda widths: abs(gone(widths) - ratio))


def _comparable(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores in units of the group's mean, so that groups can be ranked against each other."""
    mean = float(scores.mean())
    return scores / mean if mean > 0 else np.ones_like(scores)


def kept_share(scores: npt.NDArray[np.float64], width: int) -> float:
    """Share of a group's importance in its ``width`` strongest units; never zero."""
    ordered = np.sort(np.maximum(scores, 0))[::-1]
    total = float(ordered.sum())
    # Half by importance, half by count: an importance that is all in a few units is not to be believed.
    by_count = width / len(scores)
    return by_count if total <= 0 else 0.5 * by_count + 0.5 * float(ordered[:width].sum()) / total


def solve(
    structure: Structure,
    scores: Scores,
    cost: Cost,
    goal: float,
    rules: Pruning,
    fixed: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Solution:
    """The widths that keep most importance at a cost of at most ``goal``.

    In rounds: each group is tried one step narrower, all trials are costed together, and those steps are
    taken that lose least importance for what they save, until the round's share is spent. At the goal, groups
    are widened again where there is room. After Yang et al., ECCV 2018 (NetAdapt), with several steps a round
    and the logarithm of the kept share as the loss, so that the last channels of a group cost most.

    Args:
        fixed: widths that are not open, by group.
        most: greatest widths, where the search starts; none means the full ones.
    Returns:
        The nearest that was reached; ``met`` is False where even the narrowest legal widths cost more.
    """
    groups = {g.layer: g for g in structure.groups}
    fixed, most = fixed or {}, most or {}
    legal = {
        n: [fixed[n]] if n in fixed else [w for w in legal_widths(g, rules) if w <= most.get(n, g.width)]
        for n, g in groups.items()
    }
    now: Widths = {layer: widths[-1] for layer, widths in legal.items()}
    spent = cost([now])[0]
    rounds = 0
    while spent > goal and rounds < _ROUNDS:
        rounds += 1
        steps = {layer: _narrower(legal[layer], now[layer]) for layer in groups}
        open_steps = [(layer, w) for layer, width in steps.items() if (w := width) is not None]
        if not open_steps:
            break
        costs = cost([{**now, layer: width} for layer, width in open_steps])
        rates = []
        for (layer, width), after in zip(open_steps, costs, strict=True):
            before, then = kept_share(scores[layer], now[layer]), kept_share(scores[layer], width)
            saved = spent - after
            rates.append((log(before / then) / max(saved, 1e-4), saved, layer, width))
        room = max(goal, spent * _PACE)
        foreseen, taken = spent, dict(now)
        for _, saved, layer, width in sorted(rates):
            if foreseen <= room:
                break
            taken[layer] = width
            foreseen -= max(saved, 0.0)
        now, spent = taken, cost([taken])[0]
        progress(f"widths: round {rounds}, {spent:.3f} of the start")
    if spent <= goal:
        now, spent = _widened(legal, scores, cost, goal, now, spent)
    return Solution(widths=now, cost=spent, met=spent <= goal, rounds=rounds)


def _narrower(legal: Sequence[int], width: int) -> int | None:
    """A width about a fifth below, at least one legal step."""
    below = [w for w in legal if w < width]
    if not below:
        return None
    return min(below, key=lambda w: (abs(w - width * _STRIDE), -w))


def _widened(
    legal: Mapping[str, Sequence[int]],
    scores: Scores,
    cost: Cost,
    goal: float,
    now: Widths,
    spent: float,
) -> tuple[Widths, float]:
    """Give back what the last round took too much: the most useful step, or exchange of two, first."""
    for _ in range(_ROUNDS):
        if spent >= goal * CLOSE:
            break
        wider = {n: next((w for w in legal[n] if w > now[n]), None) for n in legal}
        narrower = {n: next((w for w in reversed(legal[n]) if w < now[n]), None) for n in legal}

        here = {n: kept_share(scores[n], now[n]) for n in legal}

        def gain(layer: str, width: int, here: Mapping[str, float] = here) -> float:
            return log(kept_share(scores[layer], width) / here[layer])

        ups = sorted(((gain(n, w), n, w) for n, w in wider.items() if w is not None), reverse=True)
        downs = sorted(((-gain(n, w), n, w) for n, w in narrower.items() if w is not None))
        trials = [(g, {n: w}) for g, n, w in ups]
        trials += [
            (g - lost, {n: w, m: v})
            for g, n, w in ups[:_EXCHANGED]
            for lost, m, v in downs[:_EXCHANGED]
            if m != n and g > lost + _GAIN
        ]
        if not trials:
            break
        costs = cost([{**now, **change} for _, change in trials])
        fitting = [(gained, i) for i, (gained, _) in enumerate(trials) if costs[i] <= goal]
        if not fitting:
            break
        best = max(fitting)[1]
        now, spent = {**now, **trials[best][1]}, costs[best]
    return now, spent
