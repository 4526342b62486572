"""Is a version ready to be deployed: thirteen sections of checks on a record, and one word. Pure.

READY when no check fails or is open, NOT READY when one fails, else UNDECIDED. A warning is printed and does not block.
Where the bounds come from: docs/readiness.md. The score follows Breck et al., The ML Test Score (IEEE Big Data 2017): a
check that runs by itself counts one, a declaration of the user a half, and the worst section is the score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hwopt.core.canonical import JSON
from hwopt.report.checks import FAIL, OPEN, PASS, SKIPPED, WARN, Check, Record, Row, row_checks, run_checks

READY: Final = "READY"
NOT_READY: Final = "NOT READY"
UNDECIDED: Final = "UNDECIDED"

SECTIONS: Final = (
    "Identity and provenance",
    "Contract",
    "Conformance",
    "Numerical parity",
    "Accuracy",
    "Latency and throughput",
    "Resources",
    "Robustness",
    "Reproducibility",
    "Trade-offs",
    "Security and licences",
    "Rollout",
    "What was not checked",
)


def assess(record: Record) -> dict[str, JSON]:
    """The readiness of what a run ships: a word for every target and for all, and every check behind it."""
    chosen = {t: _row(record, t, c) for t, c in record["choice"].items() if c}
    checks = [*run_checks(record)]
    for target, row in chosen.items():
        if row is not None:
            checks += row_checks(record, target, row)
    targets: dict[str, JSON] = {}
    for target, candidate in record["choice"].items():
        rows = [r for r in record["results"] if r["target"] == target]
        asked = any(b["target"] == target for b in record.get("bounds") or ())
        if candidate is None and not asked and rows and all(r["status"] == "unavailable" for r in rows):
            targets[target] = {"candidate": None, "verdict": None, "why": f"not here: {rows[0]['reason']}"}
            continue
        mine = [c for c in checks if c.target in {None, target}]
        word, why = _word(mine) if candidate else _no_choice(record, rows)
        targets[target] = {"candidate": candidate, "verdict": word, "why": why}
    words = [str(t["verdict"]) for t in targets.values() if isinstance(t, dict) and t["verdict"]]
    word = next((w for w in (NOT_READY, UNDECIDED, READY) if w in words), UNDECIDED)
    blocking = [c for c in checks if c.status in {FAIL, OPEN}]
    return {
        "verdict": word,
        "why": _sentence(word, targets, blocking),
        "targets": targets,
        "blocking": [_blocking(c) for c in sorted(blocking, key=lambda c: c.status == OPEN)],
        "sections": [
            {
                "number": number,
                "title": title,
                "status": _section_status([c for c in checks if c.section == number]),
                "score": _score([c for c in checks if c.section == number]),
                "checks": [c.to_json() for c in checks if c.section == number],
            }
            for number, title in enumerate(SECTIONS, 1)
        ],
        "score": _lowest([_score([c for c in checks if c.section == n]) for n in range(1, 13)]),
    }


def _row(record: Record, target: str, candidate: str) -> Row | None:
    rows = (r for r in record["results"] if r["target"] == target and r["candidate"] == candidate)
    return next(rows, None)


def _word(checks: Sequence[Check]) -> tuple[str, str]:
    for status, word in ((FAIL, NOT_READY), (OPEN, UNDECIDED)):
        found = [c for c in checks if c.status == status]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return word, f"{found[0].name}: {found[0].said}{more}"
    return READY, "every check that could be made holds"


def _no_choice(record: Record, rows: Sequence[Row]) -> tuple[str, str]:
    """Nothing to ship: because every version fails, or because nothing is certain of one of them yet."""
    if not record["requirements"]:
        return NOT_READY, "no requirements were stated, so no version is chosen"
    judged = [j for r in rows for j in r["details"].get("requirements", []) if j["verdict"] != "PASS"]
    for state, word, text in (
        ("INCONCLUSIVE", UNDECIDED, "no version meets its requirements for certain"),
        ("FAIL", NOT_READY, "no version meets its requirements"),
    ):
        reasons = [j["reason"] for j in judged if j["verdict"] == state]
        if any(r["verdict"] == state for r in rows):
            return word, text + (f": {reasons[0]}" if reasons else "")
    return NOT_READY, "no version meets its requirements"


def _sentence(word: str, targets: Mapping[str, Any], blocking: Sequence[Check]) -> str:
    here = {t: d for t, d in targets.items() if d["verdict"]}
    if not here:
        return "no target is here to be judged"
    if word == READY:
        return "; ".join(
            f"{d['candidate']} on {t}: every check that could be made holds" for t, d in here.items()
        )
    return "; ".join(f"{t}: {d['why']}" for t, d in here.items() if d["verdict"] == word)


def _blocking(check: Check) -> str:
    place = f" on {check.target}" if check.target else ""
    return f"{check.status}: {check.name}{place}: {check.said}" + (
        f" (asked: {check.asked})" if check.asked else ""
    )


def _section_status(checks: Sequence[Check]) -> str:
    return next((s for s in (FAIL, OPEN, WARN, PASS, SKIPPED) if any(c.status == s for c in checks)), SKIPPED)


def _score(checks: Sequence[Check]) -> float | None:
    if not checks:
        return None
    earned = sum((0.5 if c.declared else 1.0) for c in checks if c.status == PASS)
    return round(earned / len(checks), 3)


def _lowest(scores: Sequence[float | None]) -> float | None:
    return min((s for s in scores if s is not None), default=None)
