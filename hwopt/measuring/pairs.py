"""Interleaved pairs of blocks: the engine of every comparison. It knows no runtime.

A block is n consecutive calls of one side; a pair is a block of each side, back to back, in random order. A
pair counts when neither block was disturbed, by a rule that does not look at the ratio: no involuntary
context switch, and wall time within 3 % of the thread's CPU time.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from hwopt.core.measurement import Interval
from hwopt.numerics.intervals import median_interval

Call = Callable[[], object]

BLOCK_SECONDS: Final = 1e-3  # below a scheduler slice: longer blocks are hardly ever undisturbed
LEAD_IN: Final = 2  # unmeasured calls before every block
LOOKS: Final = (20, 40, 80, 160)  # clean pairs at which the interval is looked at
LOOK_CONFIDENCE: Final = 0.9875  # four looks keep the family at 95 %
WALL_OVER_CPU: Final = 1.03
LEAST_CLEAN_SHARE: Final = 0.6
LEAST_PAIRS: Final = 8  # fewer give no interval at LOOK_CONFIDENCE
STEADY_WINDOW: Final = 5
STEADY_TOLERANCE: Final = 0.01
STEADY_CAP_SECONDS: Final = 1.0
PERCENTILE_SAMPLES: Final = 1000
PERCENTILE_SECONDS: Final = 1.0
# Linux counts switches of the thread; elsewhere those of the process, which is stricter.
_WHO: Final[int] = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One timed block."""

    seconds: float  # a call
    clean: bool


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All pairs of one comparison; ``ratios`` are baseline over candidate, so that above 1 is faster."""

    ratios: list[float] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    steady: bool = True
    reached: bool = False  # the half-width asked for

    @property
    def clean_share(self) -> float:
        """Share of pairs that nothing disturbed."""
        return sum(self.clean) / len(self.clean) if self.clean else 0.0

    @property
    def degraded(self) -> bool:
        """The machine was busy: the record and the report say so."""
        return self.clean_share < LEAST_CLEAN_SHARE

    def interval(self) -> Interval:
        """Median ratio with its exact interval, over clean pairs; over all where too few are clean."""
        too_few = sum(self.clean) < LEAST_PAIRS
        kept = [r for r, c in zip(self.ratios, self.clean, strict=True) if c or too_few]
        return Interval(*median_interval(np.asarray(kept), LOOK_CONFIDENCE))


def calls_a_block(call: Call) -> int:
    """How many calls last about ``BLOCK_SECONDS``; one where a single call is longer."""
    call()
    fastest = min(_timed(call, 1).seconds for _ in range(5))
    return max(1, round(BLOCK_SECONDS / max(fastest, 1e-7)))


def _timed(call: Call, n: int) -> Block:
    switches = resource.getrusage(_WHO).ru_nivcsw
    cpu, wall = time.thread_time(), time.perf_counter()
    for _ in range(n):
        call()
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    disturbed = resource.getrusage(_WHO).ru_nivcsw != switches
    return Block(seconds=wall / n, clean=not disturbed and wall <= cpu * WALL_OVER_CPU)


def block(call: Call, n: int) -> Block:
    """Lead-in calls, then ``n`` timed ones."""
    for _ in range(LEAD_IN):
        call()
    return _timed(call, n)


def warm_up(call: Call, n: int) -> bool:
    """Run until two consecutive windows of blocks agree within 1 %; False if the cap came first."""
    times: list[float] = []
    end = time.perf_counter() + STEADY_CAP_SECONDS
    while time.perf_counter() < end:
        times.append(_timed(call, n).seconds)
        if len(times) >= 2 * STEADY_WINDOW:
            before = float(np.median(times[-2 * STEADY_WINDOW : -STEADY_WINDOW]))
            after = float(np.median(times[-STEADY_WINDOW:]))
            if abs(after / before - 1) <= STEADY_TOLERANCE:
                return True
    return False


def compare(
    baseline: Sequence[Call],
    candidate: Sequence[Call],
    *,
    seed: int,
    half_width: float,
    budget_seconds: float,
) -> Comparison:
    """Pairs until the interval is narrow enough, the last look is taken, or the budget ends.

    Args:
        baseline, candidate: equal sessions of each side, freshly loaded; one of each is drawn a pair.
        half_width: relative, where to stop.
        budget_seconds: of timed pairs.
    """
    rng = np.random.default_rng(seed)
    sizes = {id(side): calls_a_block(side[0]) for side in (baseline, candidate)}
    result = Comparison()
    for side in (baseline, candidate):
        for call in side:
            result.steady &= warm_up(call, sizes[id(side)])
    end = time.perf_counter() + budget_seconds
    while True:
        sides = {"baseline": baseline, "candidate": candidate}
        order = ["baseline", "candidate"] if rng.random() < 0.5 else ["candidate", "baseline"]
        # The same draw for both sides: neither is systematically the colder one.
        drawn = {name: sides[name][int(rng.integers(len(sides[name])))] for name in ("baseline", "candidate")}
        blocks = {name: block(drawn[name], sizes[id(sides[name])]) for name in order}
        result.ratios.append(blocks["baseline"].seconds / blocks["candidate"].seconds)
        result.clean.append(blocks["baseline"].clean and blocks["candidate"].clean)
        result.first.append(order[0])
        count = sum(result.clean)
        if result.clean[-1] and count in LOOKS:
            interval = result.interval()
            if (interval.high - interval.low) / 2 <= half_width * interval.estimate:
                result.reached = True
                return result
            if count == LOOKS[-1]:
                return result
        if time.perf_counter() > end and len(result.ratios) >= LEAST_PAIRS:
            return result


def percentiles(call: Call) -> dict[str, float | int | None]:
    """Single calls: p50 with its interval and p90 in seconds, p99 from 459 samples on, and the count.

    459 is where the greatest sample bounds the 99th percentile with 99 % confidence (0.99^459 < 0.01).
    """
    times: list[float] = []
    end = time.perf_counter() + PERCENTILE_SECONDS
    while len(times) < PERCENTILE_SAMPLES and (time.perf_counter() < end or len(times) < 20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    _, low, high = median_interval(np.asarray(times), 0.95)
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99) if len(times) >= 459 else None,
        "low": low,
        "high": high,
        "count": len(times),
    }
