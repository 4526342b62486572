"""Randomized complete rounds: the engine of every comparison. It knows no runtime.

A round is one block of every side, back to back, in random order; the ratio of two sides is taken within a
round, so that a drift of the machine meets both alike. Rounds come from several places (processes) in turn,
because one lucky memory layout is not a result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hwopt.core.measurement import Verdict
from hwopt.measuring.block import Block, Call
from hwopt.measuring.comparison import LAST_LOOK, LEAST_PAIRS, LOOKS, Comparison
from hwopt.measuring.sides import Place, Round, Sides

_TURN: Final = 5  # rounds that a place runs before it is the next one's turn
_TURN_SECONDS: Final = 30.0  # where rounds are slow a turn is shorter


@dataclass(slots=True, kw_only=True)
class Rounds:
    """Everything that was timed."""

    blocks: list[list[Block]] = field(default_factory=list)  # by round and side
    asked: list[Round] = field(default_factory=list)
    place: list[int] = field(default_factory=list)  # by round

    def compare(self, candidate: int, baseline: int = 0) -> Comparison:
        """Ratios of two sides, round by round; above 1 where the candidate is faster."""
        result = Comparison()
        for blocks, asked, place in zip(self.blocks, self.asked, self.place, strict=True):
            mine, other = blocks[candidate], blocks[baseline]
            first = asked.order.index(baseline) < asked.order.index(candidate)
            result.ratios.append(other.seconds / mine.seconds)
            result.clean.append(mine.clean and other.clean)
            result.first.append("baseline" if first else "candidate")
            result.sessions.append((place, asked.session[baseline], asked.session[candidate]))
        return result

    def seconds(self, side: int) -> float:
        """Median time of a call, over clean blocks where there are some."""
        blocks = [found[side] for found in self.blocks]
        return float(np.median([b.seconds for b in blocks if b.clean] or [b.seconds for b in blocks]))


def measure(
    places: Sequence[Place],
    *,
    sides: int,
    sessions: int,
    seed: int,
    half_width: float,
    budget_seconds: float,
    compared: Sequence[tuple[int, int]] | None = None,
    margin: float | None = None,
) -> Rounds:
    """Rounds until every interval is narrow enough, the last look is taken, or the budget ends.

    Args:
        places: processes that hold sessions of every side.
        sides: how many; the first is the baseline.
        sessions: of each side in each place; the same draw for all sides, so that none is the colder one.
        half_width: relative, where to stop.
        budget_seconds: of rounds.
        compared: (candidate, baseline): the intervals that decide when to stop; every side with the first
            if left out.
        margin: stop as well where an interval lies on one side of 1 - margin: the verdict is decided.
    """
    rng = np.random.default_rng(seed)
    result = Rounds()
    waiting = {(side, 0) for side in range(1, sides)} if compared is None else set(compared)
    looked = dict.fromkeys(waiting, 0)
    start = time.perf_counter()
    turn, length = 0, 1
    while True:
        asked = [
            Round(
                order=tuple(int(i) for i in rng.permutation(sides)),
                session=tuple(int(i) for i in rng.integers(sessions, size=sides)),
            )
            for _ in range(length)
        ]
        place = turn % len(places)
        turn += 1
        result.blocks += places[place].rounds(asked)
        result.asked += asked
        result.place += [place] * len(asked)
        for pair in sorted(waiting):
            comparison = result.compare(*pair)
            clean = sum(comparison.clean)
            due = sum(clean >= look for look in LOOKS)
            if due == looked[pair]:
                continue
            looked[pair] = due
            decided = margin is not None and comparison.verdict(margin) is not Verdict.INCONCLUSIVE
            if comparison.narrow(half_width) or decided or clean >= LAST_LOOK:
                waiting.discard(pair)
        spent = time.perf_counter() - start
        if not waiting or (spent > budget_seconds and len(result.blocks) >= LEAST_PAIRS):
            return result
        # Five rounds a turn, fewer where they are slow: the budget is looked at in between.
        length = max(1, min(_TURN, round(_TURN_SECONDS * len(result.blocks) / max(spent, 1e-9))))


def compare(
    baseline: Sequence[Call],
    candidate: Sequence[Call],
    *,
    seed: int,
    half_width: float,
    budget_seconds: float,
) -> Comparison:
    """Two sides in this process; each with the same number of equal sessions."""
    place = Sides([baseline, candidate])
    rounds = measure(
        [place],
        sides=2,
        sessions=min(len(baseline), len(candidate)),
        seed=seed,
        half_width=half_width,
        budget_seconds=budget_seconds,
    )
    return rounds.compare(1)


_QUICK: Final = 15
_QUICK_CLEAN: Final = 7


def quick_ratios(
    reference: Call, candidates: Sequence[Call], *, seed: int, count: int = _QUICK
) -> list[float]:
    """Time of each candidate over that of the reference: medians over a few rounds, for searches.

    What a search decides by this is measured again before it is reported.
    """
    rng = np.random.default_rng(seed)
    sides = 1 + len(candidates)
    place = Sides([[call] for call in (reference, *candidates)], warm=False)
    asked = [
        Round(order=tuple(int(i) for i in rng.permutation(sides)), session=(0,) * sides) for _ in range(count)
    ]
    rounds = Rounds(blocks=place.rounds(asked), asked=asked, place=[0] * count)
    result = []
    for side in range(1, sides):
        found = rounds.compare(side)
        undisturbed = [r for r, clean in zip(found.ratios, found.clean, strict=True) if clean]
        kept = undisturbed if len(undisturbed) >= _QUICK_CLEAN else found.ratios
        result.append(1 / float(np.median(kept)))
    return result
