"""Searches over made-up landscapes: everything but the training is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from hwopt.config.profile import load
from hwopt.core.canonical import JSON, canonical_json
from hwopt.search.job import Job, Outcome, Sample
from hwopt.search.lead import Lead
from hwopt.search.ledger import Ledger
from hwopt.search.subject import Subject
from hwopt.search.values import Value

HEAD = """\
name: made-up
data: {name: digits}
model: {name: mlp, hidden: [32]}
train: {epochs: 2}
candidates: {float: [], small: [{prune: {ratio: 0.5}}, {quantize: {method: ptq}}]}
targets: [host-cpu]
"""
LR = {"train.optimizer.lr": {"log": [1e-4, 1e-1]}}
Measure = Callable[[Job], Mapping[str, float]]


def subject(
    folder: Path, space: Mapping[str, Any] = LR, requirements: Sequence[Mapping[str, Any]] = (), **search: Any
) -> Subject:
    """A subject whose profile lies in ``folder``."""
    path = folder / "search.yaml"
    search = {
        "objectives": [{"metric": "accuracy"}],
        "candidate": "float",
        "sampler": "tpe",
        **search,
        "space": dict(space),
    }
    text = HEAD + f"requirements: {canonical_json(list(requirements))}\nsearch: {canonical_json(search)}\n"
    path.write_text(text)
    return Subject.of(load(path))


def exact(value: float) -> Value:
    return Value(estimate=value, low=value, high=value, tier="measured")


class MadeUp:
    """A crew whose numbers come from a function."""

    def __init__(self, measure: Measure, spread: float = 0.0) -> None:
        self.measure, self.spread = measure, spread
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []

    def room(self) -> int:
        return 1 - len(self.waiting)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        job = self.waiting.pop()
        self.jobs.append(job)
        try:
            found = self.measure(job)
        except ValueError as error:
            return [(job, Outcome(status="failed", reason=str(error)))]
        values = {
            name: Value(estimate=v, low=v - self.spread, high=v + self.spread, tier="measured")
            for name, v in found.items()
        }
        return [(job, Outcome(status="ok", values=values, cpu_seconds=job.share))]

    def withdraw(self) -> list[Job]:
        return []

    def close(self) -> None:
        pass


def lead(of: Subject, crew: MadeUp, storage: BaseStorage | None = None, **more: Any) -> Lead:
    identity: dict[str, JSON] = {"profile": of.digest, "data": "d", "hwopt": "1", "optuna": "5"}
    ledger = Ledger(storage or InMemoryStorage(), "made-up", of, identity=identity)
    return Lead(subject=of, ledger=ledger, crew=crew, progress=lambda text: None, **more)


def samples(one: Lead) -> list[Sample]:
    return [dict(t.sample) for t in one.trials]
