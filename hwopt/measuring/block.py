"""One timed block of calls, and whether anything disturbed it.

A block is n consecutive calls of one side. It is clean when nothing took the processor away while it ran: no
involuntary context switch of the process, and wall time within 3 % of its CPU time. The rule does not look at
how long the block took compared with others.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

Call = Callable[[], object]

BLOCK_SECONDS: Final = 1e-3  # below a scheduler slice: longer blocks are hardly ever undisturbed
LEAD_IN: Final = 2  # unmeasured calls before every block
_SLICE: Final = 4e-3  # seconds that a scheduler gives at a time, about
WALL_OVER_CPU: Final = 1.03
STEADY_WINDOW: Final = 5
STEADY_TOLERANCE: Final = 0.01
STEADY_CAP_SECONDS: Final = 0.5  # or twenty blocks, where those last longer
STEADY_CAP_BLOCKS: Final = 20
_LONG: Final = 0.05  # seconds of a block, from where on windows of two are enough: noise averages out within
_LONG_WINDOW: Final = 2
_PATIENCE: Final = 10.0  # seconds for one session, whatever its blocks take


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One timed block."""

    seconds: float  # a call
    clean: bool


def timed(call: Call, n: int, *, waits: bool = False) -> Block:
    """``n`` calls in a row; ``waits``: the work is another device's, so that CPU time says nothing."""
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(n):
        call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    disturbed = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != switches
    return Block(seconds=wall / n, clean=not disturbed and (waits or wall <= cpu * WALL_OVER_CPU))


def block(call: Call, n: int, *, waits: bool = False) -> Block:
    """Lead-in calls, then ``n`` timed ones."""
    for _ in range(LEAD_IN):
        call()
    return timed(call, n, waits=waits)


def paced_block(call: Call, gap_seconds: float, *, waits: bool = False) -> Block:
    """One call after a pause: what a device does that is asked now and then, and cools or sleeps between."""
    time.sleep(gap_seconds)
    return timed(call, 1, waits=waits)


def calls_a_block(call: Call) -> int:
    """How many calls last about ``BLOCK_SECONDS``; one where a single call is longer."""
    call()
    fastest = min(timed(call, 1).seconds for _ in range(5))
    return max(1, round(BLOCK_SECONDS / max(fastest, 1e-7)))


def warm_up(call: Call, n: int, *, waits: bool = False) -> bool:
    """Run until two consecutive windows of clean blocks agree within 1 %; False if the cap came first."""
    times: list[float] = []
    end, tried = time.perf_counter() + STEADY_CAP_SECONDS, 0
    while time.perf_counter() < end or (tried < STEADY_CAP_BLOCKS and time.perf_counter() < end + _PATIENCE):
        found = timed(call, n, waits=waits)
        tried += 1
        if not found.clean and found.seconds * n < _SLICE:  # longer blocks are hardly ever clean
            continue
        times.append(found.seconds)
        window = STEADY_WINDOW if found.seconds * n < _LONG else _LONG_WINDOW
        if len(times) >= 2 * window:
            before = float(np.median(times[-2 * window : -window]))
            after = float(np.median(times[-window:]))
            if abs(after / before - 1) <= STEADY_TOLERANCE:
                return True
    return False
