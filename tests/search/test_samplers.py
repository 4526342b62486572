"""Proposals: legal, never twice, the same after a resume, and better than chance."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwopt.core.canonical import canonical_json
from hwopt.core.search import Objective, SearchSettings
from hwopt.search.samplers import Past, Proposer, encoded, is_ordered, values_of

SPACE: dict[str, Any] = {
    "lr": {"log": [1e-4, 1e-1]},
    "width": {"one_of": [0.25, 0.5, 0.75, 1.0]},
    "name": {"one_of": ["adamw", "nesterov", "sgd"]},
    "momentum": {"range": [0.5, 0.99], "when": {"name": ["nesterov", "sgd"]}},
    "depth": {"integers": [1, 9], "step": 2},
    "units": {"log_integers": [4, 64]},
}


def proposer(
    sampler: str, space: dict[str, Any] = SPACE, limits: tuple[str, ...] = (), **more: Any
) -> Proposer:
    text = canonical_json({"space": space, "sampler": sampler, **more})
    made = SearchSettings.model_validate_json(text)
    objectives = (Objective(metric="accuracy"), Objective(metric="macs"))[: 2 if sampler == "nsga" else 1]
    return Proposer(settings=made, objectives=objectives, limits=limits)


def score(sample: Any) -> float:
    return -abs(math.log10(sample.get("lr", 0.003)) + 2.5) - abs(sample.get("depth", 3) - 3) * 0.1


def run(one: Proposer, trials: int, history: list[Past] | None = None) -> list[Past]:
    found = list(history or [])
    while len(found) < trials:
        sample = one.propose(found)
        if sample is None:
            break
        values = (score(sample), float(sample.get("depth", 1)))[: len(one.objectives)]
        beyond = dict.fromkeys(one.limits, 1.0 if sample.get("depth", 0) > 7 else -1.0)
        found.append(Past(sample=sample, values=None if 1.0 in beyond.values() else values, excesses=beyond))
    return found


NUMBERS = {k: v for k, v in SPACE.items() if k in {"lr", "depth", "units"}}
PLAIN = {k: v for k, v in SPACE.items() if k != "momentum"}


@pytest.mark.parametrize(
    ("sampler", "space"),
    [("random", SPACE), ("tpe", SPACE), ("gp", PLAIN), ("cma", NUMBERS), ("nsga", SPACE)],
)
def test_legal_never_twice_and_resumed_alike(sampler: str, space: dict[str, Any]) -> None:
    one = proposer(sampler, space, limits=("depth",), trials=16)
    found = run(one, 13)  # the tenth is the last that is drawn without a model
    keys = [canonical_json(dict(p.sample)) for p in found]
    assert len(set(keys)) == 13
    for past in found:
        for name, value in past.sample.items():
            assert one.settings.space[name].holds(value), (name, value)
        assert set(past.sample) == {n for n in space if one.settings.is_open(n, past.sample)}
    again = run(proposer(sampler, space, limits=("depth",), trials=16), 13, found[:7])
    assert [p.sample for p in again] == [p.sample for p in found]


def test_another_seed_is_another_search() -> None:
    assert run(proposer("random", seed=1), 3) != run(proposer("random", seed=2), 3)


def test_a_grid_has_every_cell_once() -> None:
    space = {k: SPACE[k] for k in ("name", "depth")} | {
        "momentum": {"one_of": [0.5, 0.9], "when": {"name": ["nesterov", "sgd"]}}
    }
    found = run(proposer("grid", space), 1000)
    assert len(found) == 5 * (1 + 2 + 2)
    assert len({canonical_json(dict(p.sample)) for p in found}) == len(found)
    assert run(proposer("grid", space), 1000, found[:11]) == found


def test_a_small_space_comes_to_its_end() -> None:
    for sampler in ("random", "tpe", "gp"):
        assert len(run(proposer(sampler, {"name": SPACE["name"], "width": SPACE["width"]}), 40)) == 12


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_models_beat_chance(sampler: str) -> None:
    def best(kind: str, seed: int) -> float:
        found = run(proposer(kind, NUMBERS, seed=seed), 25)
        return max(p.values[0] for p in found if p.values)

    wins = sum(best(sampler, seed) > best("random", seed) for seed in range(3))
    assert wins >= 2


def test_infeasible_regions_are_left() -> None:
    space = {"lr": {"log": [1e-4, 1e-1]}, "depth": {"integers": [1, 9]}}
    one = proposer("tpe", space, limits=("depth",), seed=3)
    found = run(one, 60)
    share = [sum(p.values is None for p in part) / len(part) for part in (found[:10], found[30:])]
    assert share[1] <= 0.15, share


def test_who_is_chosen() -> None:
    def chosen(space: dict[str, Any], **more: Any) -> str:
        return proposer("auto", space, **more).sampler

    assert chosen({"width": SPACE["width"]}) == "grid"
    assert chosen(SPACE) == "tpe"  # conditional
    assert chosen(PLAIN) == "gp"
    assert chosen(PLAIN, halving={}) == "tpe"
    assert chosen(NUMBERS, trials=1000) == "cma"
    assert chosen(PLAIN, trials=400) == "tpe"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_every_value_is_one_that_the_axis_holds(seed: int) -> None:
    one = proposer("random", seed=seed)
    sample = one.propose([])
    assert sample is not None
    assert all(one.settings.space[n].holds(v) for n, v in sample.items())


def test_grids_hold_what_the_axis_holds() -> None:
    for axis in (
        {"log_integers": [8, 64]},
        {"integers": [1, 10], "step": 5},
        {"range": [0.0, 1.0], "step": 0.6},
    ):
        one = proposer("random", {"a": axis, **NUMBERS})
        values = values_of(one.settings.space["a"])
        assert len(values) == one.settings.space["a"].size
        assert all(one.settings.space["a"].holds(v) for v in values)


def test_choices_that_are_equal_to_python_stay_apart() -> None:
    one = proposer("tpe", {"a": {"one_of": [True, 1, "1"]}, **NUMBERS})
    axis = one.settings.space["a"]
    assert len({encoded(axis, v) for v in values_of(axis)}) == 3
    assert not is_ordered(axis)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_structures_are_looked_at_first_and_refused_once(sampler: str) -> None:
    space = {"lr": {"log": [1e-4, 1e-1]}, "width": {"one_of": [8, 16, 24, 32, 40]}}
    one = proposer(sampler, space, limits=("width",), trials=16)

    def structure(sample: Any) -> str:
        return str(sample["width"])

    history: list[Past] = []
    for _ in range(14):
        sample = one.propose(history, structure)
        assert sample is not None
        refused = sample["width"] > 8
        history.append(
            Past(
                sample=sample,
                values=None if refused else (score(sample),),
                excesses={"width": 1.0 if refused else -1.0},
                structure=structure(sample),
                refused=refused,
            )
        )
    widths = [past.sample["width"] for past in history]
    assert sorted(w for w in widths if w > 8) == sorted({w for w in widths if w > 8}), (
        "refused more than once"
    )
    if sampler != "random":
        assert sorted(widths[:5]) == [8, 16, 24, 32, 40], "a structure was not looked at"


def test_nothing_is_left_where_every_structure_was_refused() -> None:
    one = proposer("tpe", {"lr": {"log": [1e-4, 1e-1]}}, limits=("width",))
    past = Past(sample={"lr": 0.01}, structure="the only one", refused=True)
    assert one.propose([past], lambda sample: "the only one") is None


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
@pytest.mark.parametrize("ends", [(0.0, 0.9, 0.3), (0.0, 0.45, 0.15), (0.1, 2.1, 0.35), (0.0, 1.0, 0.6)])
def test_steps_reach_the_last_value(ends: tuple[float, float, float], sampler: str) -> None:
    low, high, step = ends
    one = proposer(sampler, {"a": {"range": [low, high], "step": step}, "lr": {"log": [1e-4, 1e-1]}})
    axis = one.settings.space["a"]
    top = values_of(axis)[-1]
    assert top == pytest.approx(low + step * (axis.size - 1))
    history = [Past(sample={"a": top, "lr": 0.01}, values=(0.5,))]
    history = run(one, 24, history)
    assert {past.sample["a"] for past in history} <= set(values_of(axis))
    assert top in [past.sample["a"] for past in history[1:]]


def test_narrow_axes_have_more_than_ten_values() -> None:
    for kind in ("range", "log"):
        one = proposer("random", {"decay": {kind: [0.9990, 0.9999]}}, trials=100)
        values = {past.sample["decay"] for past in run(one, 60)}
        assert len(values) == 60
        assert all(one.settings.space["decay"].holds(v) for v in values)
    wide = proposer("random", {"lr": {"log": [1e-6, 1.0]}})
    assert all(p.sample["lr"] == float(f"{p.sample['lr']:.4g}") for p in run(wide, 20))


def test_a_space_too_large_to_count_is_given_up_at_once() -> None:
    space = {f"train.{name}": {"integers": [1, 2000]} for name in ("a", "b", "c")}
    space |= {"width": {"one_of": [8, 16]}}
    one = proposer("tpe", space)
    past = [Past(sample={"width": w}, structure=str(w), refused=True) for w in (8, 16)]
    asked: list[Any] = []

    def structure(sample: Any) -> str:
        asked.append(sample)
        return str(sample["width"])

    assert one.propose(past[:0], structure) is not None
    history = [
        Past(sample={**dict.fromkeys(space, 1), **p.sample}, structure=p.structure, refused=True)
        for p in past
    ]
    assert one.propose(history, structure) is None
    assert len(asked) < 5000
