"""The comparison engine against calls whose true ratio is known, and against places that cheat."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hwopt.api.self_test import healthy
from hwopt.core.measurement import Verdict
from hwopt.measuring import block as blocks
from hwopt.measuring.block import Block
from hwopt.measuring.comparison import LOOKS, Comparison
from hwopt.measuring.rounds import compare, measure, quick_ratios
from hwopt.measuring.sides import Round, Sides


def spin(units: int) -> Callable[[], None]:
    """Work of a known amount: sums over an array, repeated."""
    data = np.arange(2000, dtype=np.float64)

    def call() -> None:
        for _ in range(units):
            data.sum()

    return call


class Pretend:
    """A place whose blocks are drawn, not timed: sides take ``means`` seconds with some noise."""

    def __init__(
        self, means: Sequence[float], *, noise: float = 0.01, seed: int = 0, dirty: float = 0.0
    ) -> None:
        self.means, self.noise, self.dirty = means, noise, dirty
        self.rng = np.random.default_rng(seed)
        self.asked: list[Round] = []

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        self.asked += asked
        return [[self.block(side, one) for side in range(len(self.means))] for one in asked]

    def block(self, side: int, one: Round) -> Block:
        clean = bool(self.rng.random() >= self.dirty)
        seconds = self.means[side] * float(np.exp(self.noise * self.rng.standard_normal()))
        return Block(seconds=seconds * (1 if clean else 9), clean=clean)


def of(places: Sequence[Pretend], **more: object) -> Comparison:
    settings = {"sides": 2, "sessions": 2, "seed": 0, "half_width": 0.01, "budget_seconds": 60.0} | more
    return measure(places, **settings).compare(1)  # type: ignore[arg-type]


def test_equal_sides_are_not_told_apart() -> None:
    wrong = 0
    same = spin(40)  # one array: where two lie in memory can make one of them faster indeed
    for seed in range(6):
        result = compare([same], [same], seed=seed, half_width=0.02, budget_seconds=2.0)
        wrong += result.verdict(0.03) is Verdict.FAIL or result.interval().low > 1.03
    assert wrong == 0


def test_a_known_ratio_is_found() -> None:
    result = compare([spin(60)], [spin(30)], seed=0, half_width=0.02, budget_seconds=4.0)
    interval = result.interval()
    # The loop around the work costs a little on both sides, so the ratio is just below 2.
    assert 1.8 < interval.estimate < 2.1
    assert interval.low <= interval.estimate <= interval.high


def test_every_order_and_session_is_drawn_and_the_seed_repeats_them() -> None:
    places = [Pretend([1.0, 1.0, 1.0]) for _ in range(2)]
    for place in places:
        measure([place], sides=3, sessions=2, seed=7, half_width=1e-9, budget_seconds=60.0)
    assert places[0].asked == places[1].asked
    asked = places[0].asked
    assert {one.order for one in asked} == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    assert all({one.session[side] for one in asked} == {0, 1} for side in range(3))


def test_intervals_hold_the_truth() -> None:
    """200 drawn comparisons at a true ratio of 1.05: the four looks together miss it in 5 % at most."""
    missed = 0
    for seed in range(200):
        interval = of([Pretend([1.05, 1.0], noise=0.04, seed=seed)], seed=seed).interval()
        missed += not interval.low <= 1.05 <= interval.high
    assert missed <= 18  # 99 % of Binomial(200, 0.05)


def test_it_stops_when_narrow_when_decided_and_at_the_last_look() -> None:
    narrow = of([Pretend([1.0, 1.0], noise=0.001)])
    assert LOOKS[0] <= len(narrow.ratios) < LOOKS[0] + 5  # whole turns
    assert narrow.narrow(0.01)
    decided = of([Pretend([1.0, 1.2], noise=0.05)], margin=0.03)
    assert (decided.verdict(0.03), len(decided.ratios) < LOOKS[-1]) == (Verdict.FAIL, True)
    assert LOOKS[-1] <= len(of([Pretend([1.0, 1.0], noise=0.5)]).ratios) < LOOKS[-1] + 5
    assert 8 <= len(of([Pretend([1.0, 1.0], noise=0.5)], budget_seconds=0.0).ratios) <= 12


def test_places_take_turns() -> None:
    agree = [Pretend([1.0, 1.0], seed=seed) for seed in range(2)]
    of(agree)
    assert abs(len(agree[0].asked) - len(agree[1].asked)) <= 5


class Layouts(Pretend):
    """Every session is a little faster or slower than its file, and every process too."""

    def __init__(self, place: int, seed: int, *, session: float, process: float) -> None:
        super().__init__([1.0, 1.0], seed=1000 * seed + place)
        self.factors = 1 + session * self.rng.standard_normal((2, 3))
        self.factors *= 1 + process * self.rng.standard_normal((2, 1))

    def block(self, side: int, one: Round) -> Block:
        found = super().block(side, one)
        return Block(seconds=found.seconds * float(self.factors[side, one.session[side]]), clean=found.clean)


@pytest.mark.parametrize(
    ("places", "session", "process", "most"),
    # Most that may miss at a true 5 %, 99 % of Binomial(100, 0.05); two processes that differ by more than
    # their sessions are known by one difference, and the method misses oftener: it says at most 15 %.
    [(2, 0.01, 0.0, 11), (1, 0.01, 0.0, 11), (2, 0.0, 0.0, 11), (2, 0.005, 0.005, 15)],
)
def test_what_sessions_and_processes_differ_by_is_in_the_interval(
    places: int, session: float, process: float, most: int
) -> None:
    missed = 0
    for seed in range(100):
        here = [Layouts(place, seed, session=session, process=process) for place in range(places)]
        interval = of(here, sessions=3, seed=seed).interval()
        missed += not interval.low <= 1.0 <= interval.high
    assert missed <= most


def test_a_side_that_is_always_cold_fails_the_self_test() -> None:
    """The asymmetric schedule: one side's sessions are never the ones that ran last."""

    class Asymmetric(Pretend):
        def block(self, side: int, one: Round) -> Block:
            cold = 1.026 if side == 0 else 1.0
            return Block(seconds=cold * (1 + 0.01 * float(self.rng.standard_normal())), clean=True)

    found = [of([Asymmetric([1.0, 1.0], seed=seed)], seed=seed, margin=0.03) for seed in range(30)]
    assert not healthy([one.verdict(0.03) for one in found], [one.interval() for one in found])
    sound = [of([Pretend([1.0, 1.0], seed=seed)], seed=seed, margin=0.03) for seed in range(30)]
    assert healthy([one.verdict(0.03) for one in sound], [one.interval() for one in sound])


def test_interval_needs_enough_pairs() -> None:
    few = Comparison(ratios=[2.0] * 5, clean=[True] * 5, first=["baseline"] * 5)
    assert few.interval().low == float("-inf")
    assert few.verdict(0.03) is Verdict.INCONCLUSIVE


def test_disturbed_pairs_are_dropped_by_a_rule_that_does_not_see_the_ratio() -> None:
    comparison = Comparison(
        ratios=[1.0] * 30 + [9.0] * 10, clean=[True] * 30 + [False] * 10, first=["baseline"] * 40
    )
    assert comparison.interval().high == 1.0
    assert not comparison.degraded
    mostly = Comparison(
        ratios=[1.0] * 7 + [9.0] * 33, clean=[True] * 7 + [False] * 33, first=["baseline"] * 40
    )
    assert mostly.degraded
    assert mostly.interval().high == 9.0  # then all pairs count, and the record says so
    assert "all_pairs" in mostly.to_json()
    half = of([Pretend([1.0, 1.0], dirty=0.5)])
    assert 0.97 < half.interval().estimate < 1.03


def test_a_sleeping_block_is_not_clean_unless_it_waits_for_a_device() -> None:
    assert not blocks.block(lambda: time.sleep(0.002), 2).clean
    waits = [blocks.block(lambda: time.sleep(0.002), 2, waits=True).clean for _ in range(5)]
    assert any(waits)


def test_paced_calls_come_after_a_pause() -> None:
    place = Sides([[spin(5)], [spin(5)]], gaps=[0.02, None])
    start = time.perf_counter()
    place.rounds([Round(order=(0, 1), session=(0, 0))] * 3)
    assert time.perf_counter() - start >= 3 * 0.02  # the other side goes on in blocks


def test_warm_up_waits_for_the_steady_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is slow for its first 300 calls: the warm-up outlasts them."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    def timed(function: Callable[[], object], n: int, *, waits: bool = False) -> Block:
        for _ in range(n):
            function()
        # Every third block is disturbed, and says nothing.
        return Block(seconds=1e-3 * (1 + 2 * max(0, 300 - calls) / 300), clean=calls % 3 > 0)

    monkeypatch.setattr(blocks, "timed", timed)
    assert blocks.warm_up(call, 1)
    assert calls >= 300


def test_quick_ratios_order_candidates() -> None:
    ratios = quick_ratios(spin(40), [spin(80), spin(20)], seed=0)
    assert ratios[0] > 1.5 > 0.8 > ratios[1]
