"""How soon samplers find what random search finds in thirty trials, and what halving saves.

    python -m benchmarks.search_speed benchmarks/profiles/search-mnist.yaml --seeds 8 --out result.json

Every random search of thirty trials gives a target, its best, and a price, its CPU-seconds. Every other search is held
against every target; seeds are never shared. Searches with halving may begin half as many again, since most end at the first
rung. CPU-seconds are those of the trainings and of proposing; a training that two searches share counts for both.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import click
from optuna.storages import InMemoryStorage

from hwopt.config.profile import load
from hwopt.core.search import Halving
from hwopt.search.crews.here import HereCrew
from hwopt.search.lead import Lead
from hwopt.search.ledger import Ledger
from hwopt.search.perform import Here
from hwopt.search.subject import Subject
from hwopt.store.store import Store

_KINDS = {
    "random": ("random", False),
    "tpe": ("tpe", False),
    "gp": ("gp", False),
    "tpe+halving": ("tpe", True),
}


def searched(
    subject: Subject, here: Here, kind: str, seed: int, trials: int, rungs: Halving
) -> list[dict[str, float]]:
    """Best so far and CPU-seconds after every trial."""
    sampler, halving = _KINDS[kind]
    settings = subject.settings.model_copy(
        update={
            "sampler": sampler,
            "seed": seed,
            "trials": trials,
            "halving": rungs if halving else None,
        }
    )
    mine = replace(subject, settings=settings)
    # The folds stay those of seed 0, so that equal versions are trained once for all.
    here.subject = replace(subject, settings=subject.settings)
    ledger = Ledger(InMemoryStorage(), f"{kind}-{seed}", mine, identity={})
    found: list[dict[str, float]] = []
    start = time.process_time()
    quiet = lambda text: None  # noqa: E731
    lead = Lead(subject=mine, ledger=ledger, crew=HereCrew(here), progress=quiet)

    def note(trials: object) -> None:
        spent = sum(paid(t) for t in lead.trials)
        best = lead.history()[-1] if lead.history() else 0.0
        found.append({"best": best, "cpu": spent + time.process_time() - start, "train_cpu": spent})

    lead.on_trial = note
    lead.run()
    return found


COST: dict[str, float] = {}  # of a training, the first time that it was done


def paid(trial: object) -> float:
    """CPU-seconds of a trial's trainings, also where the store had them."""
    total = 0.0
    for key, run in trial.runs.items():  # type: ignore[attr-defined]
        name = json.dumps([dict(trial.sample), key], sort_keys=True)  # type: ignore[attr-defined]
        if run.cpu_seconds:
            COST[name] = run.cpu_seconds
        total += COST.get(name, 0.0)
    return total


def reached(trace: list[dict[str, float]], target: float) -> int | None:
    """Trials until the target; None where it was missed."""
    return next((i + 1 for i, t in enumerate(trace) if t["best"] >= target), None)


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option("--seeds", default=8)
@click.option("--trials", default=30)
@click.option("--kinds", default=",".join(_KINDS), help="Which searches; random gives the targets.")
@click.option("--first", default=0.25, help="Share of the steps of halving's first rung.")
@click.option("--factor", default=4.0, help="Of a rung's steps; one in so many goes on.")
@click.option("--set", "overrides", multiple=True, help="Override a key of the profile.")
@click.option("--store", default=".hwopt-search-speed", type=click.Path(path_type=Path))
@click.option("--out", default="search-speed.json", type=click.Path(path_type=Path))
def main(
    profile: Path,
    seeds: int,
    trials: int,
    kinds: str,
    first: float,
    factor: float,
    overrides: tuple[str, ...],
    store: Path,
    out: Path,
) -> None:
    chosen = kinds.split(",")
    if "random" not in chosen or not set(chosen) <= set(_KINDS):
        raise click.UsageError(f"--kinds lists random and others of {', '.join(_KINDS)}")
    subject, rungs = Subject.of(load(profile, overrides)), Halving(first=first, factor=factor)
    here = Here(subject=subject, store=Store(store), progress=lambda text: None)
    traces: dict[str, list[list[dict[str, float]]]] = json.loads(out.read_text()) if out.exists() else {}
    for seed in range(seeds):
        for place, kind in enumerate(_KINDS):
            if kind not in chosen:
                continue
            if len(traces.setdefault(kind, [])) > seed:
                continue  # done before
            many = 3 * trials // 2 if _KINDS[kind][1] else trials
            trace = searched(subject, here, kind, 1000 * place + seed, many, rungs)
            traces[kind].append(trace)
            click.echo(
                f"seed {seed} {kind}: best {trace[-1]['best']:.4f}, {trace[-1]['cpu']:.1f} CPU-s", err=True
            )
            out.write_text(json.dumps(traces, indent=1))
    here.close()
    targets = [(t[-1]["best"], t[-1]["cpu"]) for t in traces["random"]]
    for kind, found in traces.items():
        for begun in sorted({trials, max(map(len, found))}):
            click.echo(f"{kind}, {begun} begun: " + summary([t[:begun] for t in found], targets, kind))


def summary(found: list[list[dict[str, float]]], targets: list[tuple[float, float]], kind: str) -> str:
    """How soon, and for how much of a random search's price, searches reach random's targets."""
    counts, shares, missed = [], [], 0
    for place, trace in enumerate(found):
        for other, (target, cpu) in enumerate(targets):
            if kind == "random" and place == other:
                continue
            hit = reached(trace, target)
            missed += hit is None
            counts.append(hit or len(trace) + 1)
            shares.append(trace[(hit or len(trace)) - 1]["cpu"] / cpu)
    return (
        f"target reached in {fmean(counts):.1f} trials on average, for {fmean(shares):.2f} of the CPU-seconds of a "
        f"random search (median {median(shares):.2f}); {missed} of {len(counts)} pairs missed it and count with all "
        f"they did; best {fmean(t[-1]['best'] for t in found):.4f}, {fmean(t[-1]['cpu'] for t in found):.1f} CPU-s"
    )


if __name__ == "__main__":
    main()
