"""Hold a recorded run against a policy, and its versions against a baseline that is measured beside them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from hwopt.api.versus import against, comparable, find, known_candidate
from hwopt.config.policy import read_policy
from hwopt.core.canonical import JSON, digest_of
from hwopt.core.measurement import Verdict
from hwopt.core.policy import Policy
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.gate import Against, check, verdict_of
from hwopt.engine.record import rollback_state
from hwopt.errors import ConfigError
from hwopt.report.readiness import assess
from hwopt.store.store import Store

_WORDS = {"READY": Verdict.PASS, "NOT READY": Verdict.FAIL, "UNDECIDED": Verdict.INCONCLUSIVE}


def gate(
    run: str,
    *,
    policy: str | Path,
    store: str | Path = ".hwopt",
    baseline: str | None = None,
    across_versions: bool = False,
    progress: Progress = silent,
    today: date | None = None,
) -> dict[str, Any]:
    """The verdict of a policy on a run.

    Rules that are ratios to the baseline are measured now, both versions interleaved on this machine; nothing is
    compared with a time of another day.

    Args:
        run: id, its beginning, a tag, or ``latest``.
        policy: a YAML file; see docs/gate.md.
        baseline: a run in the same store; ``run:candidate`` names one of its versions, else the one it ships.
        across_versions: compare accuracies although other versions of the libraries made them.
    Returns:
        JSON with ``verdict`` and an entry for every rule on every version.
    Raises:
        ConfigError: no such run or policy; a rule needs a baseline and none is given; the baseline was evaluated on
            other data, or by other libraries.
    """
    place = Store(Path(store))
    rules = read_policy(Path(policy))
    record = place.record(run)
    day = today or datetime.now(UTC).date()
    beside, said = _beside(place, rules, record, baseline, across_versions, progress)
    # As of today: an expiry date, the run to roll back to and known weaknesses change while a record does not.
    release = record.get("release") or {}
    now = {**record, "release": {**release, "rollback_state": rollback_state(place, release.get("rollback"))}}
    readiness: Any = assess({**now, "started": day.isoformat()})
    ready = {
        target: (_WORDS[one["verdict"]], one["why"], one["candidate"])
        for target, one in readiness["targets"].items()
        if one["verdict"] in _WORDS
    }
    checked = check(rules, record, beside, ready, day)
    return {
        "schema_version": 1,
        "verdict": verdict_of(checked).value,
        "run": record["run"],
        "name": record["name"],
        "baseline": said,
        "policy": {"name": rules.name, "path": str(policy), "digest": digest_of(rules.to_json())},
        "day": day.isoformat(),
        "rules": [one.to_json() for one in checked],
    }


def _beside(
    place: Store, rules: Policy, record: Mapping[str, Any], baseline: str | None, across: bool, say: Progress
) -> tuple[dict[tuple[str, str], Against], JSON]:
    relative = [rule for rule in rules.rules if rule.of is not None]
    if not relative:
        return {}, None
    if baseline is None:
        raise ConfigError(
            f"the rule {relative[0].title!r} is held against a baseline, and none is given",
            fix="give --baseline RUN, for example a tag: hwopt runs tag RUN released",
        )
    name, _, candidate = baseline.partition(":")
    old = place.record(name)
    known_candidate(old, candidate)
    comparable(record, old, across_versions=across)
    found: dict[tuple[str, str], Against] = {}
    for rule in relative:
        targets = (
            [rule.target] if rule.target else [t for t, c in record["choice"].items() if c or rule.candidate]
        )
        for target in targets:
            mine = find(record, target, rule.candidate or record["choice"].get(target))
            if mine is None or mine.row["status"] != "ok" or (mine.row["candidate"], target) in found:
                continue
            base = find(old, target, candidate or old["choice"].get(target))
            wanted = {str(r.metric) for r in relative if r.target in {None, target}}
            if base is None or base.row["status"] != "ok":
                missing = dict.fromkeys(wanted, f"the baseline has no version on {target}")
                one = Against(baseline=old["run"], ratios={}, missing=missing)
            else:
                one = against(place, mine, base, wanted, say)
            found[(mine.row["candidate"], target)] = one
    return found, {"run": old["run"], "candidate": candidate or None}
