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
        gap_seconds: pause before each call, for devices that are asked now and then; None for blocks.
        warm: run every session to its steady state first.
    """

    def __init__(
        self,
        sides: Sequence[Sequence[Call]],
        *,
        waits: Sequence[bool] | None = None,
        gap_seconds: float | None = None,
        warm: bool = True,
    ) -> None:
        self._sides = [tuple(side) for side in sides]
        self._waits = list(waits or [False] * len(self._sides))
        self._gap = gap_seconds
        self._sizes = [calls_a_block(side[0]) for side in self._sides]
        self.steady = True
        for side, size, wait in zip(self._sides, self._sizes, self._waits, strict=True) if warm else ():
            for call in side:
                self.steady &= warm_up(call, size, waits=wait)

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        """The blocks of each round, by side."""
        return [self._round(one) for one in asked]

    def _round(self, one: Round) -> list[Block]:
        found: dict[int, Block] = {}
        for side in one.order:
            call, waits = self._sides[side][one.session[side]], self._waits[side]
            if self._gap is None:
                found[side] = block(call, self._sizes[side], waits=waits)
            else:
                found[side] = paced_block(call, self._gap, waits=waits)
        return [found[side] for side in sorted(found)]
