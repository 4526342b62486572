from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hwopt.core.canonical import canonical_json
from hwopt.errors import ConfigError
from hwopt.training import race as room
from hwopt.training.choices import ScheduleSettings
from hwopt.training.race import Trial, _next_rate, _ratio, race, table
from hwopt.training.race_settings import RaceSettings
from hwopt.training.settings import FitSettings
from tests.training.nets import net, split_blobs

BASE = FitSettings(batch_size=16, schedule=ScheduleSettings(name="constant"))
RACE = RaceSettings(entrants=("adamw", "sgd", {"name": "momentum", "label": "heavy", "momentum": 0.95}),
                    accuracy=0.9, steps=60, every=5, trials=3, seeds=5, samples=100)  # fmt: skip


def ran(settings: RaceSettings = RACE, keep: Path | None = None, **more: Any) -> dict[str, Any]:
    said: list[str] = []
    result = race(net, split_blobs(300, 0.4), BASE, settings, progress=said.append, keep=keep, **more)
    result["said"] = said
    return result


def test_a_race() -> None:
    torch.set_num_threads(1)
    result = ran()
    rows = {row["entrant"]: row for row in result["rows"]}
    assert set(rows) == {"adamw", "sgd", "heavy"}
    assert result["baseline"] == "adamw"
    assert rows["adamw"]["steps_ratio"]["said"] == "baseline"
    assert result["coverage"] == pytest.approx(0.9375)
    tuned = [t for t in result["trials"] if t["phase"] == "tuning"]
    raced = [t for t in result["trials"] if t["phase"] == "race"]
    assert len(tuned) == 9
    assert len(raced) == 15
    assert {t["seed"] for t in tuned}.isdisjoint({t["seed"] for t in raced})
    for row in rows.values():
        assert row["steps"]["low"] <= row["steps"]["median"]
        assert row["steps_ratio"]["said"] in {"baseline", "within noise", "faster", "slower"}
    json.dumps(result, allow_nan=False)
    printed = table(result)
    assert {len(row) for row in printed} == {9}


def test_a_race_against_itself_is_within_noise() -> None:
    twins = RaceSettings(entrants=("adamw", {"name": "adamw", "label": "twin"}), accuracy=0.9, steps=60, every=5,
                         trials=1, seeds=3, samples=100)  # fmt: skip
    rows = {row["entrant"]: row for row in ran(twins)["rows"]}
    assert rows["twin"]["steps_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0, "said": "within noise"}


def test_schedules_and_initializations_race_too() -> None:
    for over, entrants in (("schedule", ("constant", "cosine")), ("init", ("he", "default"))):
        given = RaceSettings(
            over=over, entrants=entrants, accuracy=0.8, steps=40, every=10, trials=1, seeds=2
        )  # type: ignore[arg-type]
        assert {row["entrant"] for row in ran(given)["rows"]} == set(entrants)


def test_a_killed_race_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "trials"
    whole = ran(keep=keep)
    lines = keep.read_text().splitlines()
    assert len(lines) == 25
    keep.write_text("\n".join(lines[:11]) + "\n" + lines[11][:20])  # a kill in the middle of a line
    made: list[str] = []
    real = room._trial

    def counted(*given: Any) -> Trial:
        made.append("")
        return real(*given)

    monkeypatch.setattr(room, "_trial", counted)
    again = ran(keep=keep)
    assert len(made) == 24 - 10
    assert [t["steps"] for t in again["trials"]] == [t["steps"] for t in whole["trials"]]
    made.clear()
    ran(RACE.model_copy(update={"accuracy": 0.8}), keep=keep)  # another race: nothing is taken over
    assert len(made) == 24


def trial(rate: float, steps: float, best: float = 0.5) -> Trial:
    return Trial(entrant="x", rate=rate, seed=0, phase="tuning", steps=steps, cpu_seconds=steps, best=best,
                 diverged=False, step_seconds=0.1)  # fmt: skip


def test_the_search_walks_towards_better_rates() -> None:
    assert _next_rate(0.01, 3, []) == 0.01
    assert _next_rate(0.01, 3, [trial(0.01, 50)]) == 0.03
    assert _next_rate(0.01, 3, [trial(0.01, 50), trial(0.03, 20)]) == 0.09
    assert _next_rate(0.01, 3, [trial(0.01, 50), trial(0.03, 90)]) == 0.00333
    assert _next_rate(0.01, 3, [trial(0.01, math.inf, 0.7), trial(0.03, math.inf, 0.8)]) == 0.09
    closed = [trial(0.01, 50), trial(0.03, 90), trial(0.00333, 90)]
    assert _next_rate(0.01, 3, closed) == pytest.approx(0.01 * 3**0.5, rel=0.01)


def test_a_miss_is_infinite() -> None:
    assert _ratio(math.inf, 10.0) == math.inf
    assert _ratio(10.0, math.inf) == 0.0
    assert _ratio(math.inf, math.inf) == 1.0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"entrants": ["adamw", "adamx"]}, "entrant 'adamx': unknown optimizer"),
        ({"entrants": ["adamw", {"name": "sgd", "momentum": 0.9}]}, "takes no option 'momentum'"),
        ({"entrants": ["adamw", {"lr": 0.1}]}, "has no name"),
        ({"over": "init", "entrants": ["he", {"name": "xavier", "gain": 3}]}, "takes no options"),
        ({"entrants": ["adamw", "adamw"]}, "two entrants have one label"),
        ({"entrants": ["adamw", "sgd"], "baseline": "lion"}, "is no entrant"),
        ({"entrants": ["adamw", "sgd"], "steps": 20, "every": 25}, "nobody looks before step 25"),
        ({"over": "init", "entrants": ["he", "she"]}, "unknown init 'she'"),
    ],
)
def test_bad_races(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        RaceSettings.model_validate_json(canonical_json({"accuracy": 0.9, **given}))
    assert any(text in d["msg"] for d in caught.value.errors())  # type: ignore[attr-defined]


def test_who_cannot_start_is_told_before_the_first_trial() -> None:
    settings = RACE.model_copy(update={"entrants": ("adamw", "no_such_module:Adam")})
    said: list[str] = []
    with pytest.raises(ConfigError, match="no module named"):
        race(net, split_blobs(300, 0.4), BASE, settings, progress=said.append)
    assert said == []


def test_networks_are_built_from_the_seed() -> None:
    seen: list[int] = []

    def build(seed: int) -> nn.Module:
        seen.append(seed)
        return net(seed)

    few = RACE.model_copy(update={"entrants": ("adamw", "sgd"), "trials": 1, "seeds": 2})
    race(build, split_blobs(300, 0.4), BASE, few)
    assert sorted(set(seen)) == [0, 1, 1_000_003]
