"""Look after a store: is everything whole, and what is no longer needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hwopt.errors import ConfigError
from hwopt.store.events import read_events
from hwopt.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a look at a store found."""

    runs: int
    files: int
    damaged: tuple[str, ...]  # digests
    gone: tuple[str, ...]
    broken_records: tuple[str, ...]  # run ids
    unfinished: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is lost."""
        return not (self.damaged or self.gone or self.broken_records)


def audit(store: Store, run: str | None = None) -> Audit:
    """Read every file that a run, or every run, stands on, and hold it against its digest.

    A damaged file is set aside, so that the next run makes it again.
    """
    known = [store.run_id(run)] if run is not None else store.runs()
    digests: dict[str, None] = {}
    broken: list[str] = []
    for name in known:
        try:
            record = store.record(name)
        except ConfigError:
            broken.append(name)
            continue
        digests.update(dict.fromkeys(_digests(record)))
    if run is None:
        for entry in store.step_entries():
            digests.update(dict.fromkeys(o["digest"] for o in entry.get("outputs", {}).values()))
    damaged, gone = [], []
    for digest in digests:
        if not store.object_path(digest).is_file():
            gone.append(digest)
        elif not store.whole(digest):
            damaged.append(digest)
            store.set_aside(digest)
    unfinished = (
        [s.run for s in store.summaries() if s.status in {"unfinished", "damaged"}] if run is None else []
    )
    return Audit(
        runs=len(known),
        files=len(digests),
        damaged=tuple(damaged),
        gone=tuple(gone),
        broken_records=tuple(broken),
        unfinished=tuple(unfinished),
    )


def _digests(record: dict[str, Any]) -> Iterator[str]:
    for step in record.get("steps", ()):
        for output in step.get("outputs", {}).values():
            yield output["digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What can go."""

    runs: tuple[str, ...]
    steps: tuple[str, ...]
    objects: tuple[str, ...]
    bytes: int


def waste(store: Store, *, keep: int | None, older_than_days: float | None, now: datetime) -> Waste:
    """Runs beyond the newest ``keep`` or older than so many days, tagged ones never; and what only they need.

    Without both, no run goes: only what nothing refers to.
    """
    summaries = store.summaries()
    tagged = set(store.tags().values())
    going: set[str] = set()
    if keep is not None:
        recorded = [s.run for s in summaries if s.status not in {"unfinished", "damaged"}]
        going |= set(recorded[: max(0, len(recorded) - keep)])
    if older_than_days is not None:
        limit = (now - timedelta(days=older_than_days)).isoformat(timespec="seconds")
        going |= {s.run for s in summaries if s.started and s.started < limit}
    return waste_of(store, going - tagged)


def waste_of(store: Store, going: set[str]) -> Waste:
    """What can go with these runs."""
    summaries = store.summaries()
    staying = [s.run for s in summaries if s.run not in going]
    keys: set[str] = set()
    needed: set[str] = set()
    for run in staying:
        try:
            record = store.record(run)
        except ConfigError:
            keys |= {e["key"] for e in read_events(store.run_folder(run) / "events.jsonl") if "key" in e}
            continue
        wanted = (record.get("release") or {}).get("rollback_state")
        if wanted and wanted["run"] in going:  # what would be put back
            return waste_of(store, going - {wanted["run"]})
        keys |= {step["key"] for step in record["steps"]}
        needed |= set(_digests(record))
    entries = store.step_entries()
    idle = [e["key"] for e in entries if e["key"] not in keys] if going else []
    needed |= {o["digest"] for e in entries if e["key"] not in idle for o in e["outputs"].values()}
    objects = [digest for digest in store.objects() if digest not in needed]
    size = sum(store.object_path(digest).stat().st_size for digest in objects)
    return Waste(runs=tuple(sorted(going)), steps=tuple(idle), objects=tuple(objects), bytes=size)


def remove(store: Store, found: Waste) -> None:
    """Remove it; records first, then what they stood on, so that an interruption leaves nothing that points nowhere."""
    for run in found.runs:
        shutil.rmtree(store.run_folder(run), ignore_errors=True)
    for key in found.steps:
        store.forget(key)
    for digest in found.objects:
        store.object_path(digest).unlink(missing_ok=True)
    shutil.rmtree(store.root / "quarantine", ignore_errors=True)
