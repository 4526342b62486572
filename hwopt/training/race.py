"""A fair race: the same tuning budget, the same seeds, steps and seconds, intervals, and "within noise".

Choi et al., 2019 (on empirical comparisons of optimizers): rankings follow from who was tuned how much. Dahl et
al., 2023 (AlgoPerf): time to a target, a miss counts as infinite.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from hwopt.core.canonical import canonical_json, finite_or_none
from hwopt.core.progress import clock, silent
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError, StageFailedError
from hwopt.training.batches import Split
from hwopt.training.build import Optimizers
from hwopt.training.choices import OptimizerSettings, ScheduleSettings
from hwopt.training.conditions import fingerprint
from hwopt.training.initialize import initialize
from hwopt.training.loop import Training
from hwopt.training.race_settings import RaceSettings
from hwopt.training.settings import FitSettings

_TUNING_SEED = 1_000_003  # far from the seeds of the race: who was tuned on a seed must not race on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One training of one entrant."""

    entrant: str
    rate: float
    seed: int
    phase: str  # tuning | race
    steps: float  # to the target; infinite where it was missed
    cpu_seconds: float  # to the target, of the training alone; infinite likewise
    best: float  # validation accuracy
    diverged: bool
    step_seconds: float  # CPU time of a step


def race(
    build: Callable[[int], nn.Module],
    data: Split,
    base: FitSettings,
    settings: RaceSettings,
    *,
    init: str = "default",
    progress: Progress = silent,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Tune, race, rank.

    Args:
        build: a fresh network from a seed.
        base: everything that the entrants have in common.
        keep: a file of finished trials, one a line; a race that was killed goes on from it.
    Returns:
        JSON: ``rows`` in order of median steps, and all ``trials``.
    """
    few = slice(0, settings.samples)
    data = Split(x=data.x, y=data.y, x_validation=data.x_validation[few], y_validation=data.y_validation[few])
    for entrant in settings.labels:  # who cannot start is told before the first hour is spent
        Optimizers(build(0), _entered(base, settings, entrant, 1e-3))
    same = fingerprint(build(0), data, base, 0, canonical_json({"race": settings.to_json(), "init": init}))
    done = _finished(keep, same)
    total = len(settings.labels) * (settings.trials + settings.seeds)
    started, fresh, results = time.monotonic(), 0, list[Trial]()

    def run(entrant: str, rate: float, seed: int, phase: str) -> Trial:
        nonlocal fresh
        known = done.get((entrant, rate, seed, phase))
        if known is None:
            known = _trial(
                build,
                data,
                _entered(base, settings, entrant, rate),
                settings,
                entrant,
                rate,
                seed,
                phase,
                init,
            )
            fresh += 1
            if keep is not None:
                with keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(known)) + "\n")
        results.append(known)
        left = (time.monotonic() - started) / max(1, fresh) * (total - len(results))
        reached = f"{known.steps:.0f} steps" if math.isfinite(known.steps) else "missed"
        progress(
            f"race {len(results)}/{total}: {entrant} at {rate:.2g}, {phase} seed {seed}: {reached}, {clock(left)} left"
        )
        return known

    rows = []
    for entrant in settings.labels:
        tuned: list[Trial] = []
        while len(tuned) < settings.trials:
            rate = _next_rate(_first_rate(base, settings, entrant), settings.factor, tuned)
            tuned.append(run(entrant, rate, _TUNING_SEED, "tuning"))
        best = min(tuned, key=_merit)
        raced = [run(entrant, best.rate, seed, "race") for seed in range(settings.seeds)]
        rows.append(_row(entrant, best.rate, tuned, raced))
    _compare(rows, settings)
    rows.sort(key=lambda row: (row["steps"]["median"], -row["accuracy"]["median"]))
    for row in rows:  # infinity is no JSON
        for name in ("steps", "cpu_seconds", "steps_ratio", "cpu_ratio"):
            row[name] = {k: finite_or_none(v) if isinstance(v, float) else v for k, v in row[name].items()}
    trials = [
        {k: finite_or_none(v) if isinstance(v, float) else v for k, v in asdict(t).items()} for t in results
    ]
    return {
        "schema_version": 1,
        "over": settings.over,
        "target_accuracy": settings.accuracy,
        "baseline": settings.baseline or settings.labels[0],
        "coverage": 1 - 2 * 0.5**settings.seeds,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "trials": trials,
    }


def _finished(keep: Path | None, mine: str) -> dict[tuple[str, float, int, str], Trial]:
    """Trials of an earlier run of the same race; the first line says which race it is."""
    if keep is None:
        return {}
    found: dict[tuple[str, float, int, str], Trial] = {}
    lines = keep.read_text(encoding="utf-8").splitlines() if keep.is_file() else []
    if not lines or lines[0] != canonical_json({"race": mine}):
        keep.write_text(canonical_json({"race": mine}) + "\n", encoding="utf-8")
        return {}
    for line in lines[1:]:
        try:
            trial = Trial(**json.loads(line))
        except (ValueError, TypeError):
            continue  # a line that a kill cut short
        found[trial.entrant, trial.rate, trial.seed, trial.phase] = trial
    return found


def _first_rate(base: FitSettings, settings: RaceSettings, entrant: str) -> float:
    """The entrant's own, else its default."""
    optimizer = base.optimizer
    if settings.over == "optimizer":
        optimizer = OptimizerSettings.model_validate_json(canonical_json(settings.settings_of(entrant)))
    return optimizer.spec.default_lr if optimizer.lr in {None, "auto"} else optimizer.rate


def _merit(trial: Trial) -> tuple[float, float, float]:
    """Fewest steps to the target, else the best accuracy, else the lower rate."""
    return trial.steps, -trial.best, trial.rate


def _next_rate(first: float, factor: float, tried: Sequence[Trial]) -> float:
    """Pattern search: a neighbour of the best rate so far; between them where both are known.

    So the budget is the same for all, and nobody is held back by where a grid happens to end.
    """
    if not tried:
        return first
    best = min(tried, key=_merit).rate
    known = [t.rate for t in tried]
    for width in (factor, math.sqrt(factor), factor**0.25, factor**0.125):
        for rate in (best * width, best / width):
            rounded = min(100.0, float(f"{rate:.3g}"))
            if all(abs(math.log(rounded / k)) > 0.1 * math.log(factor) for k in known):
                return rounded
    return best  # all is known: once more


def _entered(base: FitSettings, settings: RaceSettings, entrant: str, rate: float) -> FitSettings:
    given = settings.settings_of(entrant)
    update: dict[str, Any] = {
        "max_steps": settings.steps,
        "epochs": 100_000,
        "early_stopping": None,
        "watch": False,
    }
    if settings.over == "optimizer":
        optimizer = OptimizerSettings.model_validate_json(canonical_json(given))
        if optimizer.spec.schedule_free:
            update["schedule"] = ScheduleSettings(name="constant")
    else:
        optimizer = base.optimizer
    if settings.over == "schedule":
        update["schedule"] = ScheduleSettings.model_validate_json(canonical_json(given))
    update["optimizer"] = optimizer.model_copy(update={"lr": rate})
    try:
        return type(base).model_validate(dict(base.model_copy(update={**update, "halvings": 0})))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"the entrant {entrant!r}: {first['msg']}", fix=str(first.get("ctx", {}).get("fix"))
        ) from None


def _trial(
    build: Callable[[int], nn.Module], data: Split, given: FitSettings, settings: RaceSettings,
    entrant: str, rate: float, seed: int, phase: str, init: str,
) -> Trial:  # fmt: skip
    torch.manual_seed(seed)
    module = build(seed)
    rule = str(settings.settings_of(entrant)["name"]) if settings.over == "init" else init
    if rule != "default":
        initialize(module, rule, seed)  # type: ignore[arg-type]
    best, steps, at_target, diverged = 0.0, math.inf, math.inf, False
    # Validation is ours to time: the loop looks at it only where the schedule needs it.
    none = slice(0, 0 if not given.schedule.spec.needs_validation else None)
    own = Split(
        x=data.x, y=data.y, x_validation=data.x_validation[none], y_validation=data.y_validation[none]
    )
    training = Training(module, own, given, seed=seed, progress=silent, label=entrant)
    spent, mark, taken = 0.0, time.process_time(), 0
    try:
        for step in training.steps():
            taken = step
            if step % settings.every and step < training.total:
                continue
            spent += time.process_time() - mark
            _, accuracy = training.evaluate(data.x_validation, data.y_validation)
            best = max(best, accuracy)
            if accuracy >= settings.accuracy and math.isinf(steps):
                steps, at_target = float(step), spent
                if phase == "race":
                    break
            mark = time.process_time()
    except StageFailedError:
        diverged = True
    return Trial(
        entrant=entrant, rate=rate, seed=seed, phase=phase, steps=steps, cpu_seconds=at_target, best=best,
        diverged=diverged, step_seconds=spent / max(1, taken),
    )  # fmt: skip


def _row(entrant: str, rate: float, tuned: Sequence[Trial], raced: Sequence[Trial]) -> dict[str, Any]:
    good = max(t.best for t in tuned)
    near = [t.rate for t in tuned if t.best >= good - 0.01]
    return {
        "entrant": entrant,
        "rate": rate,
        "steps": _spread([t.steps for t in raced]),
        "cpu_seconds": _spread([t.cpu_seconds for t in raced]),
        "accuracy": _spread([t.best for t in raced]),
        "step_milliseconds": 1e3 * median(t.step_seconds for t in raced),
        "reached": sum(math.isfinite(t.steps) for t in raced) / len(raced),
        "diverged": sum(t.diverged for t in raced) / len(raced),
        "rate_tolerance_decades": math.log10(max(near) / min(near)),
        "_steps": [t.steps for t in raced],
        "_cpu": [t.cpu_seconds for t in raced],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the range of all: for n seeds it covers the true median with 1 - 2·(1/2)^n."""
    return {"median": float(np.median(values)), "low": min(values), "high": max(values)}


def _compare(rows: list[dict[str, Any]], settings: RaceSettings) -> None:
    """Ratios to the baseline seed by seed, which shares data order and initial weights."""
    base = next(r for r in rows if r["entrant"] == (settings.baseline or settings.labels[0]))
    base_steps, base_cpu = base["_steps"], base["_cpu"]
    for row in rows:
        for name, mine, theirs in (
            ("steps_ratio", row["_steps"], base_steps),
            ("cpu_ratio", row["_cpu"], base_cpu),
        ):
            ratios = [_ratio(a, b) for a, b in zip(mine, theirs, strict=True)]
            spread: dict[str, Any] = dict(_spread(ratios))
            unsure = spread["low"] <= 1.0 <= spread["high"]
            spread["said"] = (
                "baseline"
                if row is base
                else "within noise"
                if unsure
                else "faster"
                if spread["high"] < 1
                else "slower"
            )
            row[name] = spread
    for row in rows:
        del row["_steps"], row["_cpu"]


def _ratio(mine: float, theirs: float) -> float:
    """Two misses say nothing of each other."""
    if math.isinf(mine) and math.isinf(theirs):
        return 1.0
    return math.inf if math.isinf(mine) else 0.0 if math.isinf(theirs) else mine / theirs


def table(result: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a race as text, the header first."""

    def spread(value: Mapping[str, Any], form: str) -> str:
        low, mid, high = (value[k] for k in ("low", "median", "high"))
        if mid is None:
            return "missed"
        return (
            f"{mid:{form}} [{low:{form}}, {high:{form}}]"
            if high is not None
            else f"{mid:{form}} [{low:{form}}, missed]"
        )

    def ratio(value: Mapping[str, Any]) -> str:
        return value["said"] if value["said"] == "baseline" else f"{spread(value, '.2f')} {value['said']}"

    head = [
        result["over"],
        "rate",
        "steps",
        "CPU s",
        "steps, ratio",
        "CPU, ratio",
        "ms/step",
        "diverged",
        "decades",
    ]
    body = [
        [
            row["entrant"], f"{row['rate']:.2g}", spread(row["steps"], ".0f"), spread(row["cpu_seconds"], ".1f"),
            ratio(row["steps_ratio"]), ratio(row["cpu_ratio"]), f"{row['step_milliseconds']:.1f}",
            f"{row['diverged']:.0%}", f"{row['rate_tolerance_decades']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return [head, *body]
