"""How much of the true front a search finds for a part of the evaluations, on a space that was measured whole.

    python -m benchmarks.search_front benchmarks/profiles/search-compress.yaml --store .hwopt-front --out front.json

First every version of the space is tried once, and kept; the same command goes on after an interruption. Then searches
with different seeds answer from that table: the share of the true hypervolume that they reach is exact. Versions that
cannot keep the limits are refused before training, and do not count as evaluations; it is counted that none is trained.
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
from hwopt.core.canonical import canonical_json
from hwopt.search.crews.here import HereCrew
from hwopt.search.job import Job, Outcome
from hwopt.search.lead import Lead
from hwopt.search.ledger import Ledger, Trial, open_storage
from hwopt.search.perform import Here
from hwopt.search.subject import Subject
from hwopt.search.values import hypervolume
from hwopt.store.store import Store


class Table:
    """Answers jobs from what was measured."""

    def __init__(self, subject: Subject, trials: list[Trial]) -> None:
        self.subject = subject
        self.known = {canonical_json(dict(t.sample)): t for t in trials}
        # Of versions that share their structure, one was refused for all.
        self.refused = {subject.structure(t.sample): t for t in trials if t.status == "infeasible"}
        self.trained: list[Trial] = []
        self.waiting: list[Job] = []

    def room(self) -> int:
        return 1 - len(self.waiting)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        job = self.waiting.pop()
        key = canonical_json(dict(job.sample))
        trial = self.known[key] if key in self.known else self.refused[self.subject.structure(job.sample)]
        if job.trained:
            self.trained.append(trial)
        if trial.status == "failed":
            return [(job, Outcome(status="failed", reason=trial.reason))]
        return [(job, Outcome(status="ok", values=trial.values if job.trained else trial.known))]

    def close(self) -> None:
        pass


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option("--seeds", default=8)
@click.option("--share", default=0.35)
@click.option("--samplers", default="random,tpe,nsga,gp")
@click.option("--store", default=".hwopt-search-front", type=click.Path(path_type=Path))
@click.option("--out", default="search-front.json", type=click.Path(path_type=Path))
def main(profile: Path, seeds: int, share: float, samplers: str, store: Path, out: Path) -> None:
    subject = Subject.of(load(profile))
    started = time.monotonic()
    here = Here(subject=subject, store=Store(store), progress=lambda text: None)
    whole = Lead(
        subject=subject,
        ledger=Ledger(open_storage(None, store), "whole", subject, identity={}),
        crew=HereCrew(here),
        progress=lambda text: click.echo(f"{time.monotonic() - started:7.0f}s {text[:110]}", err=True),
    )
    whole.run()
    here.close()
    done = [t for t in whole.trials if t.status == "ok"]
    first, second = subject.objectives

    def point(trial: Trial) -> tuple[float, float]:
        values = [trial.all_values[o.metric].estimate * (-1 if o.rises else 1) for o in (first, second)]
        return values[0], values[1]

    points = [point(t) for t in done]
    corner = (max(x for x, _ in points), max(y for _, y in points))
    true = hypervolume(points, corner)
    budget = int(share * len(done))
    click.echo(
        f"{len(whole.trials)} versions: {len(done)} trained, {sum(t.status == 'infeasible' for t in whole.trials)} refused; "
        f"searches train {budget}"
    )
    rows = []
    for sampler in samplers.split(","):
        for seed in range(seeds):
            settings = subject.settings.model_copy(
                update={"sampler": sampler, "seed": seed, "trials": budget}
            )
            mine = replace(subject, settings=settings)
            table = Table(mine, whole.trials)
            ledger = Ledger(InMemoryStorage(), f"{sampler}-{seed}", mine, identity={})
            lead = Lead(subject=mine, ledger=ledger, crew=table, progress=lambda text: None)
            lead.run()
            found = hypervolume([point(t) for t in table.trained if t.status == "ok"], corner) / true
            wrong = sum(t.status == "infeasible" for t in table.trained)
            rows.append(
                {
                    "sampler": sampler,
                    "seed": seed,
                    "share": found,
                    "trained": len(table.trained),
                    "infeasible_trained": wrong,
                }
            )
            out.write_text(json.dumps(rows, indent=1))
        mine_rows = [r for r in rows if r["sampler"] == sampler]
        shares = [float(str(r["share"])) for r in mine_rows]
        click.echo(
            f"{sampler}: {fmean(shares):.1%} of the true hypervolume (least {min(shares):.1%}) for {budget} of {len(done)} "
            f"evaluations, mean of {seeds} seeds; infeasible versions trained: {sum(int(str(r['infeasible_trained'])) for r in mine_rows)}"
        )


if __name__ == "__main__":
    main()
