"""Processes that measure, seen from the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hwopt.measuring.block import Block
from hwopt.measuring.sides import Round
from hwopt.processes import Child, Limits

_ANSWER_SECONDS: Final = 900.0  # loading may compile; a runtime that hangs is a failed step


class Process(Child):
    """One process with fresh sessions; it is a place where rounds are run."""

    def __init__(self, threads: int, seconds: float = _ANSWER_SECONDS) -> None:
        super().__init__("hwopt.latency.worker", threads=threads, limits=Limits(seconds=seconds))

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        """The blocks of each round, by side."""
        answer = self.ask("rounds", rounds=[[list(one.order), list(one.session)] for one in asked])
        return [[Block(seconds=s, clean=bool(c)) for s, c in blocks] for blocks in answer["blocks"]]
