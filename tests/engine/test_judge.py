"""Rules × data → verdict."""

from __future__ import annotations

from typing import Any

import pytest

from hwopt.core.measurement import Verdict
from hwopt.core.profile import Requirement
from hwopt.engine.judge import choose, goals_of, judge, judge_row, run_verdict

P, F, I = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE  # noqa: E741 - three letters for a table


def result(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "candidate": "a", "target": "t", "status": "ok", "reason": None, "tier": "measured", "accuracy": 0.99,
        "accuracy_drop": 0.002, "agreement": 1.0, "latency_ms": {"p50": 1.0, "low": 0.9, "high": 1.1},
        "speedup": {"estimate": 2.0, "low": 1.9, "high": 2.1}, "file_bytes": 1000, "integer_share": 1.0,
        "verdict": None,
        "details": {
            "evaluation": {
                "accuracy_interval": {"low": 0.985, "high": 0.995},
                "accuracy_drop_interval": {"low": 0.0, "high": 0.004},
            },
            "missing": {},
        },
    }  # fmt: skip
    row.update(changes)
    return row


TABLE = [
    ("speedup", {"min": 1.5}, {}, P),
    ("speedup", {"min": 1.9}, {}, P),
    ("speedup", {"min": 2.0}, {}, I),
    ("speedup", {"min": 2.1}, {}, I),
    ("speedup", {"min": 2.2}, {}, F),
    ("speedup", {"max": 2.5}, {}, P),
    ("speedup", {"max": 2.0}, {}, I),
    ("speedup", {"max": 1.0}, {}, F),
    ("speedup", {"min": 1.0}, {"speedup": None}, F),
    ("speedup", {"min": 1.0}, {"speedup": {"estimate": 2.0, "low": None, "high": None}}, I),
    ("speedup", {"min": 1.5}, {"tier": "predicted"}, I),
    ("speedup", {"min": 3.0}, {"tier": "predicted"}, F),
    ("speedup", {"min": 1.5}, {"tier": "estimated"}, P),
    ("accuracy", {"min": 0.98}, {}, P),
    ("accuracy", {"min": 0.99}, {}, I),
    ("accuracy", {"min": 0.996}, {}, F),
    ("accuracy", {"min": 0.5}, {"details": {"missing": {}}}, F),
    ("accuracy_drop", {"max": 0.005}, {}, P),
    ("accuracy_drop", {"max": 0.004}, {}, P),
    ("accuracy_drop", {"max": 0.003}, {}, I),
    ("accuracy_drop", {"max": -0.001}, {}, F),
    ("latency_ms", {"max": 1.1}, {}, P),
    ("latency_ms", {"max": 1.0}, {}, I),
    ("latency_ms", {"max": 0.5}, {}, F),
    ("latency_ms", {"max": 9.0}, {"latency_ms": None}, F),
    ("file_bytes", {"max": 1000.0}, {}, P),
    ("file_bytes", {"max": 999.0}, {}, F),
    ("file_bytes", {"max": 999.0}, {"file_bytes": None}, F),
    ("agreement", {"min": 0.999}, {}, P),
    ("agreement", {"min": 0.999}, {"agreement": 0.99}, F),
    ("integer_share", {"min": 1.0}, {}, P),
    ("integer_share", {"min": 1.0}, {"integer_share": 0.5}, F),
    ("integer_share", {"min": 1.0}, {"integer_share": None}, F),
    ("fits", {}, {}, F),
    ("fits", {}, {"details": {"fits": True, "missing": {}}}, P),
    ("fits", {}, {"details": {"fits": False, "fpga": {"short": ["lut: needs 9"]}, "missing": {}}}, F),
    ("accuracy", {"min": 0.1}, {"status": "failed", "reason": "it broke"}, F),
]


@pytest.mark.parametrize(("metric", "bound", "changes", "verdict"), TABLE)
def test_rules(metric: str, bound: dict[str, float], changes: dict[str, Any], verdict: Verdict) -> None:
    judged = judge(Requirement.model_validate({"metric": metric, **bound}), result(**changes))
    assert judged.verdict is verdict, judged.reason
    assert judged.reason


def test_inconclusive_says_what_would_settle_it() -> None:
    judged = judge(Requirement(metric="accuracy_drop", max=0.003), result())
    assert "more test samples" in judged.reason
    judged = judge(Requirement(metric="speedup", min=2.0), result())
    assert "budget_seconds" in judged.reason


def test_absent_target_is_judged_only_where_it_is_named() -> None:
    away = result(status="unavailable", reason="no GPU")
    anywhere = Requirement(metric="accuracy", min=0.5)
    assert judge_row([anywhere], away) == (None, [])
    verdict, _ = judge_row([anywhere, Requirement(metric="speedup", target="t", min=1.0)], away)
    assert verdict is F


def test_run_passes_where_every_target_has_a_version() -> None:
    rule = [Requirement(metric="accuracy", min=0.5)]
    rows = [result(verdict="PASS"), result(verdict="FAIL"), result(target="u", verdict="INCONCLUSIVE")]
    assert run_verdict(rule, rows) is I
    assert run_verdict(rule, rows[:2]) is P
    assert run_verdict(rule, [result(verdict="FAIL")]) is F
    named = [Requirement(metric="fits", target="t")]
    assert run_verdict(named, [result(verdict=None)]) is F  # asked for, and nothing could show it
    assert run_verdict([], [result(verdict=None)]) is P
    assert run_verdict([], [result(verdict=None, status="unavailable")]) is I


def test_choice_is_the_fastest_and_among_equals_the_smallest() -> None:
    def row(name: str, low: float, high: float, size: int, verdict: str = "PASS") -> dict[str, Any]:
        latency = {"p50": (low + high) / 2, "low": low, "high": high}
        return result(candidate=name, latency_ms=latency, speedup=None, file_bytes=size, verdict=verdict)

    rows = [row("slow", 2.0, 2.1, 1), row("fast", 1.0, 1.1, 900), row("level", 1.05, 1.2, 500)]
    assert choose(rows)["candidate"] == "level"  # type: ignore[index]
    assert choose([*rows, row("broken", 0.1, 0.2, 1, "FAIL")])["candidate"] == "level"  # type: ignore[index]
    assert choose([row("x", 1, 2, 3, "FAIL")]) is None
    untimed = [
        {**row("large", 1, 2, 1000), "latency_ms": None},
        {**row("small", 1, 2, 250), "latency_ms": None},
    ]
    assert choose(untimed)["candidate"] == "small"  # type: ignore[index]
    # Latencies of different steps are not comparable; speed-ups over one float model are.
    paired = [
        {**row("busy hour", 2.0, 2.1, 900), "speedup": {"estimate": 2.0, "low": 1.9, "high": 2.1}},
        {**row("quiet hour", 1.0, 1.1, 900), "speedup": {"estimate": 1.5, "low": 1.4, "high": 1.6}},
    ]
    assert choose(paired)["candidate"] == "busy hour"  # type: ignore[index]


def pruned(estimate: float, low: float, high: float, *, goal: float = 0.5) -> dict[str, Any]:
    reached = {"estimate": estimate, "low": low, "high": high}
    facts = {"unit": "latency", "tier": "measured", "goal": goal, "predicted": 0.49, "reached": reached}
    return {"pruning_goals": [{**facts, "met": estimate <= goal, "exhausted": estimate > goal}]}


@pytest.mark.parametrize(
    ("details", "verdict"),
    [
        (pruned(0.49, 0.485, 0.495), P),
        (pruned(0.495, 0.48, 0.51), I),
        (pruned(0.51, 0.49, 0.53), I),
        (pruned(0.6, 0.59, 0.61), F),
        ({"auto": {"goal": "g", "met": True, "validation_drop": 0.0, "latency": 0.2, "stopped": "s"}}, P),
        ({"auto": {"goal": "g", "met": False, "validation_drop": 0.1, "latency": 0.2, "stopped": "s"}}, F),
    ],
)
def test_goals_of_a_candidate_are_judged_like_requirements(details: dict[str, Any], verdict: Verdict) -> None:
    row = result(details={**result()["details"], **details})
    (judged,) = goals_of(row)
    assert judged.verdict is verdict
    found, reasons = judge_row([Requirement(metric="speedup", min=1.5)], row)
    assert found is verdict
    assert len(reasons) == 2
