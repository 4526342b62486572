"""Rules × data → verdict and exit code, through the command line."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hwopt
from hwopt.core.measurement import Verdict
from hwopt.core.policy import Policy, Rule
from hwopt.engine.gate import Against, check, verdict_of
from hwopt.report.gate import SUMMARY_BYTES, junit, summary
from hwopt.store.store import Store
from tests.conftest import Command
from tests.engine.test_judge import result
from tests.store.records import record

CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def row(**changes: Any) -> dict[str, Any]:
    """A measured version of 1,000 test samples."""
    details = {
        "evaluation": {
            "samples": 1000, "classes": 10, "accuracy_interval": {"low": 0.985, "high": 0.995},
            "accuracy_drop_interval": {"low": 0.0, "high": 0.004}, "f1_interval": {"low": 0.98, "high": 0.99},
            "emulation": None, "model_digest": "sha256:1",
        },
        "benchmark": {
            "memory_mb": {"added": 12.0}, "load_ms": 3.0, "recipe": {"threads": 1},
            "pairs": {"count": 200, "clean_share": 0.9},
        },
        "missing": {}, "applicable": True, "steps": [], "requirements": [], "fits": None,
    }  # fmt: skip
    base = result(details=details, macs=10, parameters=20, f1=0.985)
    base["latency_ms"] = {
        "p50": 1.0,
        "low": 0.9,
        "high": 1.1,
        "p90": 1.3,
        "p99": 1.5,
        "p99_bound": 1.8,
        "count": 500,
    }
    for name, value in changes.items():
        if name in details["evaluation"] or name == "reference":
            place = "evaluation" if name in details["evaluation"] else "benchmark"
            base["details"][place][name] = value
        elif name in details:
            base["details"][name] = value
        else:
            base[name] = value
    return base


NAN = float("nan")
#  rule, changes of the row, verdict
TABLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"metric": "accuracy", "min": 0.98}, {}, "PASS"),
    ({"metric": "accuracy", "min": 0.99}, {}, "INCONCLUSIVE"),
    ({"metric": "accuracy", "min": 0.999}, {}, "FAIL"),
    ({"metric": "accuracy_drop", "max": 0.005}, {}, "PASS"),
    ({"metric": "accuracy_drop", "max": 0.002}, {}, "INCONCLUSIVE"),
    ({"metric": "accuracy_drop", "max": -0.001}, {}, "FAIL"),
    ({"metric": "f1", "min": 0.98}, {}, "PASS"),
    ({"metric": "agreement", "min": 0.99}, {}, "PASS"),
    ({"metric": "agreement", "min": 0.999}, {}, "INCONCLUSIVE"),  # all of 1,000 samples do not show 0.999
    ({"metric": "latency_ms", "max": 1.2}, {}, "PASS"),
    ({"metric": "latency_ms", "max": 1.0}, {}, "INCONCLUSIVE"),
    ({"metric": "latency_ms", "max": 0.5}, {}, "FAIL"),
    ({"metric": "p99_ms", "max": 2.0}, {}, "PASS"),
    ({"metric": "p99_ms", "max": 1.6}, {}, "INCONCLUSIVE"),
    ({"metric": "p99_ms", "max": 1.0}, {}, "FAIL"),
    ({"metric": "p99_ms", "max": 2.0}, {"latency_ms": {"p50": 1.0, "low": 0.9, "high": 1.1}}, "FAIL"),
    ({"metric": "speedup", "min": 1.5}, {}, "PASS"),
    ({"metric": "speedup", "min": 2.0}, {}, "INCONCLUSIVE"),
    (
        {"metric": "speedup", "min": 1.5},
        {"speedup": {"estimate": 2.0, "low": None, "high": None}},
        "INCONCLUSIVE",
    ),
    ({"metric": "speedup", "min": 1.5}, {"speedup": None}, "FAIL"),
    ({"metric": "file_bytes", "max": 1000}, {}, "PASS"),
    ({"metric": "file_bytes", "max": 999}, {}, "FAIL"),
    ({"metric": "memory_mb", "max": 20}, {}, "PASS"),
    ({"metric": "load_ms", "max": 2}, {}, "FAIL"),
    ({"metric": "macs", "max": 10}, {}, "PASS"),
    ({"metric": "integer_share", "min": 1.0}, {}, "PASS"),
    ({"metric": "fits"}, {}, "FAIL"),
    ({"metric": "fits", "tier": "estimated"}, {"fits": True, "tier": "estimated"}, "PASS"),
    ({"metric": "fits"}, {"fits": True, "tier": "estimated"}, "INCONCLUSIVE"),
    # missing, failed, stopped, absent
    ({"metric": "accuracy", "min": 0.5}, {"accuracy_interval": None}, "FAIL"),
    ({"metric": "latency_ms", "max": 9.0}, {"latency_ms": None}, "FAIL"),
    ({"metric": "file_bytes", "max": 9e9}, {"file_bytes": None}, "FAIL"),
    ({"metric": "accuracy", "min": 0.5}, {"status": "failed", "reason": "it crashed"}, "FAIL"),
    ({"metric": "accuracy", "min": 0.5}, {"status": "stopped", "reason": "no time"}, "INCONCLUSIVE"),
    ({"metric": "accuracy", "min": 0.5, "target": "nowhere"}, {}, "FAIL"),
    ({"metric": "accuracy", "min": 0.5, "candidate": "nobody"}, {}, "FAIL"),
    # evidence
    ({"metric": "latency_ms", "max": 1.2}, {"tier": "predicted"}, "INCONCLUSIVE"),
    ({"metric": "latency_ms", "max": 0.5}, {"tier": "predicted"}, "FAIL"),
    ({"metric": "latency_ms", "max": 1.2}, {"tier": "estimated"}, "INCONCLUSIVE"),
    ({"metric": "latency_ms", "max": 1.2, "tier": "estimated"}, {"tier": "estimated"}, "PASS"),
    ({"metric": "latency_ms", "max": 1.2, "tier": "estimated"}, {"tier": "predicted"}, "INCONCLUSIVE"),
    ({"metric": "latency_ms", "max": 1.2, "tier": "compiled"}, {"tier": "estimated"}, "INCONCLUSIVE"),
    (
        {"metric": "accuracy", "min": 0.98},
        {"tier": "estimated", "emulation": {"identical": 1}},
        "INCONCLUSIVE",
    ),
    # too little data, a machine at another speed
    ({"metric": "accuracy", "min": 0.5}, {"samples": 1}, "INCONCLUSIVE"),
    ({"metric": "accuracy", "min": 0.5}, {"classes": 1}, "INCONCLUSIVE"),
    ({"metric": "accuracy", "min": 0.5, "min_samples": 1000}, {}, "PASS"),
    ({"metric": "accuracy", "min": 0.5, "min_samples": 1001}, {}, "INCONCLUSIVE"),
    ({"metric": "latency_ms", "max": 1.2, "min_samples": 501}, {}, "INCONCLUSIVE"),
    (
        {"metric": "latency_ms", "max": 9},
        {"reference": {"milliseconds": 2.0, "on_record_ms": 1.0}},
        "INCONCLUSIVE",
    ),
    # severity
    ({"metric": "accuracy", "min": 0.999, "severity": "warn"}, {}, "PASS"),
]


def store_with(folder: Path, changed: dict[str, Any], choice: str | None = "a") -> Store:
    store = Store(folder / ".hwopt")
    run = "20260101T000000-000001-abcd"
    store.save_record(run, record(run, choice={"t": choice}, results=[changed]))
    return store


@pytest.mark.parametrize(("rule", "changes", "verdict"), TABLE)
def test_table(
    rule: dict[str, Any], changes: dict[str, Any], verdict: str, tmp_path: Path, command: Command
) -> None:
    store_with(tmp_path, row(**changes))
    (tmp_path / "gate.yaml").write_text(json.dumps({"rules": [rule]}))
    outcome = command("gate", "--policy", "gate.yaml", "--json")
    assert outcome.code == CODES[verdict], outcome.out + outcome.err
    assert outcome.json["verdict"] == verdict
    (judged,) = outcome.json["rules"]
    if rule.get("severity") != "warn":
        assert judged["verdict"] == verdict
    if judged["verdict"] == "INCONCLUSIVE":
        assert any(word in judged["reason"] for word in ("settle", "decide", "run it again")), judged[
            "reason"
        ]


def test_there_are_thirty_cases() -> None:
    assert len(TABLE) >= 30


def numbers() -> st.SearchStrategy[float | None]:
    return st.one_of(st.none(), st.just(NAN), st.just(math.inf), st.just(-math.inf), st.floats(-10, 10))


@given(low=numbers(), high=numbers(), bound=st.floats(-10, 10), upper=st.booleans())
def test_only_a_whole_finite_interval_on_the_good_side_passes(
    low: float | None, high: float | None, bound: float, upper: bool
) -> None:
    rule = Rule(metric="latency_ms", of="baseline", **({"max": bound} if upper else {"min": bound}))
    ratios = {} if low is None or high is None else {"latency_ms": (low, high)}
    against = {("a", "t"): Against(baseline="b", ratios=ratios)}
    data = record("x", choice={"t": "a"}, results=[row()])
    (found,) = check(Policy(rules=(rule,)), data, against, {}, date(2026, 1, 1))
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        assert found.verdict is Verdict.FAIL
    else:
        good = high <= bound if upper else low >= bound
        assert (found.verdict is Verdict.PASS) == good
    json.dumps(found.to_json(), allow_nan=False)


def test_a_target_without_a_version_fails() -> None:
    data = record("x", choice={"t": "a", "u": None}, results=[row(), row(target="u", verdict="FAIL")])
    found = check(Policy(rules=(Rule(metric="accuracy", min=0.5),)), data, {}, {}, date(2026, 1, 1))
    assert [f.verdict for f in found] == [Verdict.PASS, Verdict.FAIL]
    assert "ships no version on u" in found[1].reason


def test_a_target_that_is_not_here_is_no_failure() -> None:
    away = row(target="gpu", status="unavailable", reason="no GPU")
    data = record("x", choice={"t": "a", "gpu": None}, results=[row(), away])
    found = check(Policy(rules=(Rule(metric="accuracy", min=0.5),)), data, {}, {}, date(2026, 1, 1))
    assert [f.verdict for f in found] == [Verdict.PASS]
    named = Policy(rules=(Rule(metric="accuracy", min=0.5, target="gpu"),))
    (found_there,) = check(named, data, {}, {}, date(2026, 1, 1))
    assert found_there.verdict is Verdict.FAIL


def test_readiness_is_of_one_version() -> None:
    data = record("x", choice={"t": "a"}, results=[row(), row(candidate="b")])
    ready = {"t": (Verdict.PASS, "every check holds", "a")}
    policy = Policy(rules=(Rule(metric="ready"), Rule(metric="ready", candidate="b")))
    assert [f.verdict for f in check(policy, data, {}, ready, date(2026, 1, 1))] == [
        Verdict.PASS,
        Verdict.FAIL,
    ]


@pytest.mark.parametrize(("day", "code"), [("2026-06-01", 0), ("2026-06-02", 1)])
def test_waivers_end(day: str, code: int, tmp_path: Path) -> None:
    store = store_with(tmp_path, row())
    waiver = {"rule": "accuracy ≥ 0.999", "reason": "new sensor", "owner": "ann", "expires": "2026-06-01"}
    (tmp_path / "g.yaml").write_text(
        json.dumps({"rules": [{"metric": "accuracy", "min": 0.999}], "waivers": [waiver]})
    )
    found = hwopt.gate("latest", policy=tmp_path / "g.yaml", store=store.root, today=date.fromisoformat(day))
    assert CODES[found["verdict"]] == code
    (rule,) = found["rules"]
    assert ("ann" in rule["waiver"]) if code == 0 else ("ended on 2026-06-01" in rule["reason"])


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("rules: []\n", "rules"),
        ("rules: [{metric: acuracy, min: 1}]\n", "metric"),
        ("rules: [{metric: accuracy}]\n", "exactly one of min and max"),
        ("rules: [{metric: fits, min: 1}]\n", "takes no bound"),
        ("rules: [{metric: speedup, min: 1, of: baseline}]\n", "cannot be held against a baseline"),
        ("rules: [{metric: accuracy, min: 1, tier: predicted}]\n", "a prediction never passes"),
        ("rules: [{metric: macs, max: 1, min_samples: 3}]\n", "min_samples belongs to"),
        ("rules: [{metric: macs, max: 1}, {metric: macs, max: 1}]\n", "two rules"),
        (
            "rules: [{metric: macs, max: 1}]\nwaivers: [{rule: x, reason: why, owner: o, expires: 2026-01-01}]\n",
            "no rule",
        ),
        ("rules: [{metric: macs, max: .nan}]\n", "finite"),
        ("rule: 1\n", "unknown key 'rule'"),
        ("", "mapping"),
    ],
)
def test_wrong_policies(policy: str, says: str, tmp_path: Path, command: Command) -> None:
    store_with(tmp_path, row())
    (tmp_path / "g.yaml").write_text(policy)
    outcome = command("gate", "--policy", "g.yaml")
    assert outcome.code == 2
    assert says in outcome.err
    assert "g.yaml:" in outcome.err


def test_a_ratio_needs_a_baseline_of_the_same_data_and_versions(tmp_path: Path, command: Command) -> None:
    store = store_with(tmp_path, row())
    (tmp_path / "g.yaml").write_text('{"rules": [{"metric": "file_bytes", "max": 1, "of": "baseline"}]}')
    outcome = command("gate", "--policy", "g.yaml")
    assert outcome.code == 2
    assert "give --baseline" in outcome.err
    other = record("20250101T000000-000001-aaaa", choice={"t": "a"}, results=[row(file_bytes=2000)])
    store.save_record(other["run"], {**other, "data": {"name": "d", "digest": "sha256:2"}})
    outcome = command("gate", "--policy", "g.yaml", "--baseline", "2025")
    assert (outcome.code, "other data" in outcome.err) == (2, True)
    old = deepcopy(other) | {"run": "20240101T000000-000001-aaaa"}
    old["environment"]["libraries"] = {"hwopt": "0", "torch": "1"}
    store.save_record(old["run"], old)
    outcome = command("gate", "--policy", "g.yaml", "--baseline", "2024")
    assert (outcome.code, "torch 1 then, None now" in outcome.err) == (2, True)
    outcome = command("gate", "--policy", "g.yaml", "--baseline", "2024", "--across-versions", "--json")
    assert outcome.code == 0
    assert outcome.json["rules"][0]["high"] == 0.5
    outcome = command("gate", "--policy", "g.yaml", "--baseline", "2024:nobody")
    assert (outcome.code, "no version 'nobody'" in outcome.err) == (2, True)


def test_junit_and_summary(tmp_path: Path, command: Command) -> None:
    odd = "x\x07]]><b>|`\u2028"
    store_with(tmp_path, row(reason=odd, status="failed"))
    rules = [{"metric": "accuracy", "min": 0.9}, {"metric": "latency_ms", "max": 1.0, "severity": "warn"}]
    (tmp_path / "g.yaml").write_text(json.dumps({"rules": rules}))
    (tmp_path / "s.md").write_bytes(b"before \xff\n")
    outcome = command("gate", "--policy", "g.yaml", "--junit", "out/g.xml", "--summary", "s.md")
    assert outcome.code == 1
    suite = ElementTree.parse(tmp_path / "out" / "g.xml").getroot()[0]
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["2", "1", "0", "1"]
    assert all(case.get("classname") and case.get("name") for case in suite.iter("testcase"))
    text = (tmp_path / "s.md").read_bytes()
    assert text.startswith(b"before \xff\n## FAIL")
    assert b"<b>" not in text


def test_a_summary_fits_its_host() -> None:
    data = record("x", choice={"t": "a"}, results=[row()])
    rule = check(Policy(rules=(Rule(metric="accuracy", min=0.5),)), data, {}, {}, date(2026, 1, 1))[
        0
    ].to_json()
    gate: dict[str, Any] = {
        "verdict": "PASS", "run": "r", "name": "n", "baseline": None, "day": "2026-01-01",
        "policy": {"name": "p"}, "rules": [{**rule, "reason": "é" * 500}] * 2000,
    }  # fmt: skip
    text = summary(gate)
    assert len(text.encode()) < SUMMARY_BYTES
    assert "more rules are left out" in text
    assert junit(gate).count("<testcase") == 2000


def test_verdict_of_nothing_blocking() -> None:
    assert verdict_of([]) is Verdict.PASS
