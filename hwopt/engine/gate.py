"""A policy against a record: a verdict for every rule, and one for the release. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Final

from hwopt.core.canonical import JSON, finite_or_none
from hwopt.core.measurement import Tier, Verdict
from hwopt.core.policy import TIERED, Policy, Rule
from hwopt.engine.judge import drift, fits, interval_of, settles, too_few
from hwopt.numerics.intervals import wilson_interval

_ORDER: Final = [Tier.MEASURED, Tier.COMPILED, Tier.ESTIMATED, Tier.PREDICTED]
_ACCURACY: Final = {"accuracy", "accuracy_drop", "f1"}
_ABSOLUTE_TIMES: Final = {"latency_ms", "p99_ms", "load_ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """One version beside the baseline: ends of each ratio, or of the accuracy drop; and why one is missing."""

    baseline: str
    ratios: Mapping[str, tuple[float, float]]
    missing: Mapping[str, str] = field(default_factory=dict)
    undecided: Mapping[str, str] = field(default_factory=dict)  # why a comparison says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One rule on one version."""

    rule: Rule
    target: str | None
    candidate: str | None
    verdict: Verdict
    reason: str
    low: float | None = None
    high: float | None = None
    tier: str | None = None
    waiver: str | None = None  # who waived it, until when, and why

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "rule": self.rule.title,
            "metric": self.rule.metric,
            "of": self.rule.of,
            "min": self.rule.min,
            "max": self.rule.max,
            "severity": self.rule.severity,
            "target": self.target,
            "candidate": self.candidate,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
            "tier": self.tier,
            "waiver": self.waiver,
        }


def verdict_of(checked: Sequence[Checked]) -> Verdict:
    """FAIL if a blocking rule fails, else INCONCLUSIVE if one is, else PASS."""
    blocking = [c.verdict for c in checked if c.rule.severity == "block" and c.waiver is None]
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in blocking:
            return verdict
    return Verdict.PASS


def check(
    policy: Policy,
    record: Mapping[str, Any],
    against: Mapping[tuple[str, str], Against],
    ready: Mapping[str, tuple[Verdict, str, str]],
    today: date,
) -> list[Checked]:
    """Every rule on every version that it concerns.

    Args:
        against: by candidate and target, what was measured beside the baseline.
        ready: by target, what the readiness report says, and of which version.
    """
    found: list[Checked] = []
    for rule in policy.rules:
        for target, candidate, row in _concerned(rule, record):
            if row is None:
                text = _nobody(rule, record, target)
                one = Checked(
                    rule=rule, target=target, candidate=candidate, verdict=Verdict.FAIL, reason=text
                )
            else:
                one = _judged(rule, row, against.get((row["candidate"], row["target"])), ready)
            found.append(_waived(one, policy, today))
    return found


def _concerned(
    rule: Rule, record: Mapping[str, Any]
) -> list[tuple[str | None, str | None, Mapping[str, Any] | None]]:
    targets = [rule.target] if rule.target else list(record["choice"])
    found: list[tuple[str | None, str | None, Mapping[str, Any] | None]] = []
    for target in targets:
        candidate = rule.candidate or record["choice"].get(target)
        there = [r for r in record["results"] if r["target"] == target]
        if rule.target is None and there and all(r["status"] == "unavailable" for r in there):
            continue  # nothing was promised for this target by name
        rows = [r for r in there if r["candidate"] == candidate]
        if rule.target is None and rows and not rows[0]["details"].get("applicable", True):
            continue  # such a version has no place on the device
        found.append((target, candidate, rows[0] if rows else None))
    return found or [(None, rule.candidate, None)]


def _nobody(rule: Rule, record: Mapping[str, Any], target: str | None) -> str:
    if target is not None and target not in record["choice"]:
        return f"the run has no target {target!r}"
    if rule.candidate:
        return f"the run has no version {rule.candidate!r} that could be judged"
    return "the run ships no version" + (f" on {target}" if target else "")


def _judged(
    rule: Rule, row: Mapping[str, Any], against: Against | None, ready: Mapping[str, tuple[Verdict, str, str]]
) -> Checked:
    def said(verdict: Verdict, reason: str, low: float | None = None, high: float | None = None) -> Checked:
        return Checked(
            rule=rule,
            target=row["target"],
            candidate=row["candidate"],
            verdict=verdict,
            reason=reason,
            low=low,
            high=high,
            tier=tier_of(rule.metric, row),
        )

    if row["status"] == "stopped":
        return said(Verdict.INCONCLUSIVE, f"{row['reason']}; finishing the run would settle it")
    if row["status"] != "ok":
        return said(Verdict.FAIL, f"no result: {row['reason']}")
    if rule.metric == "ready":
        nothing = (Verdict.FAIL, "there is no readiness report of this target", row["candidate"])
        verdict, reason, candidate = ready.get(row["target"], nothing)
        if candidate != row["candidate"]:
            return said(Verdict.FAIL, f"the readiness report is of {candidate}, not of this version")
        return said(verdict, reason)
    if rule.metric == "fits":
        one = fits("fits", row)
        return _with_tier(said(one.verdict, one.reason), rule)
    if rule.metric in _ACCURACY and (why := too_few(row)) is not None:
        return said(Verdict.INCONCLUSIVE, why)
    if rule.of is None and rule.metric in _ABSOLUTE_TIMES and (why := drift(row)) is not None:
        return said(Verdict.INCONCLUSIVE, why)
    speed = (row["speedup"] or {}) if rule.metric == "speedup" else {}
    if speed.get("estimate") is not None and None in {speed["low"], speed["high"]}:
        why = f"too few timed pairs for an interval; {settles('speedup')} would settle it"
        return said(Verdict.INCONCLUSIVE, why)
    count = samples_of(rule.metric, row)
    if rule.min_samples is not None and (count is None or count < rule.min_samples):
        has = "an unknown number of" if count is None else f"{count:,}"
        return said(
            Verdict.INCONCLUSIVE, f"{has} samples, and the rule asks for {rule.min_samples:,}; more settle it"
        )
    if rule.of is None:
        interval, why = value_of(rule.metric, row), (row["details"].get("missing") or {}).get(rule.metric)
    elif against is None:
        interval, why = None, "it was not held against the baseline"
    elif rule.metric in against.undecided:
        return said(Verdict.INCONCLUSIVE, against.undecided[rule.metric])
    else:
        interval, why = against.ratios.get(rule.metric), against.missing.get(rule.metric)
    if interval is None or not all(math.isfinite(end) for end in interval):
        return said(Verdict.FAIL, f"{rule.metric} is missing: {why or 'it was not obtained'}")
    return _with_tier(_in_bounds(rule, interval, said), rule)


def _in_bounds(rule: Rule, interval: tuple[float, float], said: Any) -> Checked:
    low, high = interval
    if rule.max is not None:
        good, bad, bound = high <= rule.max, low > rule.max, rule.max
    else:
        bound = float("nan") if rule.min is None else rule.min
        good, bad = low >= bound, high < bound
    what = f"{rule.metric}{' of the baseline' if rule.of else ''}"
    text = f"{what} lies in [{low:.4g}, {high:.4g}]" if low != high else f"{what} is {low:.6g}"
    verdict = Verdict.PASS if good else Verdict.FAIL if bad else Verdict.INCONCLUSIVE
    if verdict is Verdict.INCONCLUSIVE:
        text += f", across the bound {bound:g}; {settles(rule.metric)} would settle it"
    checked: Checked = said(verdict, text, low, high)
    return checked


def _with_tier(checked: Checked, rule: Rule) -> Checked:
    """A number passes only on the evidence that the rule asks for, and a prediction never."""
    if checked.verdict is not Verdict.PASS or checked.tier is None:
        return checked
    tier = Tier(checked.tier)
    if tier is not Tier.PREDICTED and _ORDER.index(tier) <= _ORDER.index(rule.tier):
        return checked
    why = f"{checked.reason}, but it is {tier.value}, and the rule asks for {rule.tier.value}"
    if tier is Tier.PREDICTED:
        why = f"{checked.reason}, but a prediction cannot pass"
    return replace(
        checked, verdict=Verdict.INCONCLUSIVE, reason=f"{why}; measuring it on the device would settle it"
    )


def _waived(checked: Checked, policy: Policy, today: date) -> Checked:
    if checked.verdict is Verdict.PASS:
        return checked
    for waiver in policy.waivers:
        if waiver.rule != checked.rule.title:
            continue
        if date.fromisoformat(waiver.expires) < today:
            note = f"{checked.reason} (the waiver of {waiver.owner} ended on {waiver.expires})"
            return replace(checked, reason=note)
        return replace(checked, waiver=f"waived by {waiver.owner} until {waiver.expires}: {waiver.reason}")
    return checked


def tier_of(metric: str, row: Mapping[str, Any]) -> str | None:
    """How a number of a row was obtained; accuracy on a device that only exists as a design is emulated."""
    emulated = (row["details"].get("evaluation") or {}).get("emulation") is not None
    if metric in TIERED or (emulated and metric in {*_ACCURACY, "agreement", "ready"}):
        tier: str | None = row["tier"]
        return tier
    return Tier.MEASURED.value


def samples_of(metric: str, row: Mapping[str, Any]) -> int | None:
    """How many samples or calls are behind a number."""
    count: int | None = None
    if metric in _ACCURACY or metric == "agreement":
        count = (row["details"].get("evaluation") or {}).get("samples")
    elif metric in {"latency_ms", "p99_ms"}:
        count = (row["latency_ms"] or {}).get("count")
    elif metric == "speedup":
        count = (row["details"].get("benchmark") or {}).get("pairs", {}).get("count")
    return count


def value_of(metric: str, row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Both ends of what is known of a metric; equal where the number is exact."""
    benchmark = row["details"].get("benchmark") or {}
    if metric == "p99_ms":
        latency = row["latency_ms"] or {}
        low, high = latency.get("p90"), latency.get("p99_bound")  # surely below, and surely above
        return None if low is None or high is None else (float(low), float(high))
    if metric in {"memory_mb", "load_ms"}:
        value = (
            benchmark.get("load_ms")
            if metric == "load_ms"
            else (benchmark.get("memory_mb") or {}).get("added")
        )
        return None if value is None else (float(value), float(value))
    samples = samples_of(metric, row)
    if metric == "agreement" and row["agreement"] is not None and samples:
        return wilson_interval(round(row["agreement"] * samples), samples)
    return interval_of(metric, row)
