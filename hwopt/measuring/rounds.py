"""Several candidates against one reference, in randomized complete rounds: quick, for searches.

What a search decides by this is measured again with ``pairs`` before it is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from hwopt.measuring.pairs import Call, block, calls_a_block

_ROUNDS: Final = 15
_LEAST_CLEAN: Final = 7


def ratios(reference: Call, candidates: Sequence[Call], *, seed: int, rounds: int = _ROUNDS) -> list[float]:
    """Time of each candidate over that of the reference: the median over rounds, of clean ones where enough.

    A round runs one block of every side in random order, so that a drift of the machine meets all alike.
    """
    rng = np.random.default_rng(seed)
    sides = [reference, *candidates]
    sizes = [calls_a_block(call) for call in sides]
    seconds = np.zeros((rounds, len(sides)))
    clean = np.zeros((rounds, len(sides)), np.bool_)
    for index in range(rounds):
        for side in rng.permutation(len(sides)):
            found = block(sides[side], sizes[side])
            seconds[index, side], clean[index, side] = found.seconds, found.clean
    result = []
    for side in range(1, len(sides)):
        quotients = seconds[:, side] / seconds[:, 0]
        undisturbed = quotients[clean[:, side] & clean[:, 0]]
        result.append(float(np.median(undisturbed if len(undisturbed) >= _LEAST_CLEAN else quotients)))
    return result
