"""Two runs, or two of their versions, beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwopt.api.versus import Version, against, comparable, find, known_candidate
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.errors import ConfigError
from hwopt.plugins import did_you_mean
from hwopt.store.store import Store

_METRICS = {"latency_ms", "accuracy", "accuracy_drop", "file_bytes", "macs", "parameters"}


def compare_runs(
    first: str,
    second: str,
    *,
    store: str | Path = ".hwopt",
    target: str | None = None,
    across_versions: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What the second would change against the first, on every target that both serve.

    Args:
        first, second: ``RUN`` or ``RUN:CANDIDATE``; without a candidate, the version that the run ships.
        target: only this one.
    Returns:
        JSON: for every target the ratios of the second to the first with their intervals. Latency is measured now,
        interleaved; accuracy is paired on the same test samples.
    Raises:
        ConfigError: no such run, no version that both have, other data, or other library versions.
    """
    place = Store(Path(store))
    records, names = [], []
    for text in (first, second):
        run, _, candidate = text.partition(":")
        records.append(place.record(run))
        names.append(candidate or None)
    base, new = records
    comparable(new, base, across_versions=across_versions)
    for record, name in zip(records, names, strict=True):
        known_candidate(record, name)
    targets = [t for t in base["choice"] if t in new["choice"]]
    if target is not None and target not in targets:
        raise ConfigError(f"the two have no target {target!r} in common", fix=did_you_mean(target, targets))
    targets = [t for t in targets if target in {None, t}]
    found: list[dict[str, Any]] = []
    for one in targets:
        old, mine = _version(base, one, names[0]), _version(new, one, names[1])
        if old is None or mine is None:
            continue
        beside = against(place, mine, old, _METRICS, progress)
        found.append(
            {
                "target": one,
                "first": str(old),
                "second": str(mine),
                "ratios": {m: {"low": low, "high": high} for m, (low, high) in sorted(beside.ratios.items())},
                "missing": {**beside.missing, **beside.undecided},
            }
        )
    if not found:
        raise ConfigError(
            "the two have no target with a version of both",
            fix="name versions: RUN:CANDIDATE; a run without requirements ships none",
        )
    return {"schema_version": 1, "first": base["run"], "second": new["run"], "targets": found}


def _version(record: Mapping[str, Any], target: str, candidate: str | None) -> Version | None:
    found = find(record, target, candidate or record["choice"].get(target))
    return found if found is not None and found.row["status"] == "ok" else None
