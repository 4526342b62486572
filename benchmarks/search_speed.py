"""How soon samplers find what random search finds in thirty trials, and what halving saves.

    python -m benchmarks.search_speed benchmarks/profiles/search-mnist.yaml --seeds 8 --out result.json

Every seed has a random search of thirty trials; its best is the target of the other searches with that seed, which
go on to thirty trials themselves. CPU-seconds are those of the trainings and of proposing; a training that two
searches share is counted for both.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

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


def searched(subject: Subject, here: Here, kind: str, seed: int, trials: int) -> list[dict[str, float]]:
    """Best so far and CPU-seconds after every trial."""
    sampler, halving = _KINDS[kind]
    settings = subject.settings.model_copy(
        update={"sampler": sampler, "seed": seed, "trials": trials, "halving": Halving() if halving else None}
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


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option("--seeds", default=8)
@click.option("--trials", default=30)
@click.option("--kinds", default="random,tpe,gp,tpe+halving")
@click.option("--store", default=".hwopt-search-speed", type=click.Path(path_type=Path))
@click.option("--out", default="search-speed.json", type=click.Path(path_type=Path))
def main(profile: Path, seeds: int, trials: int, kinds: str, store: Path, out: Path) -> None:
    subject = Subject.of(load(profile))
    here = Here(subject=subject, store=Store(store), progress=lambda text: None)
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        target = None
        for kind in kinds.split(","):
            trace = searched(subject, here, kind, seed, trials)
            if kind == "random":
                target = trace[-1]["best"]
            reached = next(
                (i + 1 for i, t in enumerate(trace) if target is not None and t["best"] >= target), None
            )
            at = trace[reached - 1]["cpu"] if reached else None
            rows.append(
                {"seed": seed, "kind": kind, "best": trace[-1]["best"], "target": target, "reached": reached,
                 "cpu_at_target": at, "cpu": trace[-1]["cpu"], "train_cpu": trace[-1]["train_cpu"], "trace": trace}
            )  # fmt: skip
            click.echo(
                f"seed {seed} {kind}: best {trace[-1]['best']:.4f}, target {target}, reached at {reached}, "
                f"{trace[-1]['cpu']:.1f} CPU-s",
                err=True,
            )
            out.write_text(json.dumps(rows, indent=1))
    here.close()
    for kind in kinds.split(","):
        mine = [r for r in rows if r["kind"] == kind]
        reached_in = [r["reached"] or trials + 1 for r in mine]
        click.echo(
            f"{kind}: target reached in {fmean(reached_in):.1f} trials on average "
            f"({sum(r['reached'] is None for r in mine)} of {len(mine)} missed it, counted as {trials + 1}), "
            f"best {fmean(float(str(r['best'])) for r in mine):.4f}, {fmean(float(str(r['cpu'])) for r in mine):.1f} CPU-s"
        )


if __name__ == "__main__":
    main()
