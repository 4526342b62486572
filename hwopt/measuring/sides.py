"""Sessions of several sides in one process, and rounds over them: what a process that measures holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hwopt.measuring.block import Block, Call, block, calls_a_block, paced_block, warm_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One block of every side: in which order, and by which of its sessions."""

    order: tuple[int, ...]  # a permutation of the sides; those left out are not timed
    session: tuple[int, ...]  # by side


class Place(Protocol):
    """Where rounds are run: a process with fresh sessions of every side. It knows no statistics."""

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        """The blocks of each round, by side."""


class Sides:
    """Sessions in this process.

    Args:
        sides: for each side its sessions, freshly loaded; every side has the same number.
        waits: by side, whether another device does the work.
        gaps: by side, the pause before each call, for devices that are asked now and then; None for blocks.
        warm: run every session to its steady state first.
    """

    def __init__(
        self,
        sides: Sequence[Sequence[Call]],
        *,
        waits: Sequence[bool] | None = None,
        gaps: Sequence[float | None] | None = None,
        warm: bool = True,
    ) -> None:
        self._sides = [tuple(side) for side in sides]
        self._waits = list(waits or [False] * len(self._sides))
        self._gaps = list(gaps or [None] * len(self._sides))
        self._sizes = [calls_a_block(side[0]) for side in self._sides]
        self.steady = [True] * len(self._sides)
        for index, side in enumerate(self._sides if warm else ()):
            size, wait = self._sizes[index], self._waits[index]
            self.steady[index] = all([warm_up(call, size, waits=wait) for call in side])  # noqa: C419 - every one
        if warm:  # the first calls were slow, and blocks of them would be short
            self._sizes = [calls_a_block(side[0]) for side in self._sides]

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        """The blocks of each round, by side."""
        return [self._round(one) for one in asked]

    def _round(self, one: Round) -> list[Block]:
        found: dict[int, Block] = {}
        for side in one.order:
            call, waits = self._sides[side][one.session[side]], self._waits[side]
            gap = self._gaps[side]
            if gap is None:
                found[side] = block(call, self._sizes[side], waits=waits)
            else:
                found[side] = paced_block(call, gap, waits=waits)
        return [found[side] for side in sorted(found)]
