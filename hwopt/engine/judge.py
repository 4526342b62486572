"""Requirements against results: a verdict for every row, target and run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwopt.core.canonical import JSON
from hwopt.core.measurement import DRIFT, Interval, Tier, Verdict
from hwopt.core.profile import Requirement

Result = Mapping[str, Any]
_LEAST_SAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One requirement on one row."""

    requirement: str
    verdict: Verdict
    reason: str

    def to_json(self) -> JSON:
        """Plain JSON."""
        return {"requirement": self.requirement, "verdict": self.verdict.value, "reason": self.reason}


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL before INCONCLUSIVE before PASS."""
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def judge(requirement: Requirement, result: Result) -> Judged:
    """PASS where the whole interval keeps the bound, FAIL where none of it does; missing never passes."""
    name = str(requirement)
    if result["status"] == "stopped":
        return Judged(
            requirement=name, verdict=Verdict.INCONCLUSIVE, reason=f"{result['reason']}; run it again"
        )
    if result["status"] != "ok":
        return Judged(requirement=name, verdict=Verdict.FAIL, reason=f"no result: {result['reason']}")
    if requirement.metric == "fits":
        return fits(name, result)
    if requirement.metric in {"accuracy", "accuracy_drop", "f1"} and (why := too_few(result)) is not None:
        return Judged(requirement=name, verdict=Verdict.INCONCLUSIVE, reason=why)
    interval = interval_of(requirement.metric, result)
    relative = requirement.metric in {"speedup", "relative_latency"}
    if interval is None and relative and result["speedup"] is not None:
        return Judged(
            requirement=name,
            verdict=Verdict.INCONCLUSIVE,
            reason="too few timed pairs for an interval; a larger benchmark.budget_seconds would settle it",
        )
    if interval is None:
        reason = (result["details"].get("missing") or {}).get(requirement.metric, "it was not obtained")
        return Judged(
            requirement=name, verdict=Verdict.FAIL, reason=f"{requirement.metric} is missing: {reason}"
        )
    low, high = interval
    if requirement.metric == "latency_ms" and (why := drift(result)) is not None:
        return Judged(requirement=name, verdict=Verdict.INCONCLUSIVE, reason=why)
    if requirement.max is not None:
        good, bad, bound = high <= requirement.max, low > requirement.max, requirement.max
    else:
        bound = requirement.min if requirement.min is not None else float("nan")
        good, bad = low >= bound, high < bound
    said = f"{requirement.metric} lies in [{low:.4g}, {high:.4g}]"
    if good and result["tier"] == Tier.PREDICTED.value:
        return Judged(
            requirement=name,
            verdict=Verdict.INCONCLUSIVE,
            reason=f"{said}, but a prediction cannot pass alone",
        )
    if good:
        return Judged(requirement=name, verdict=Verdict.PASS, reason=said)
    if bad:
        return Judged(requirement=name, verdict=Verdict.FAIL, reason=said)
    return Judged(
        requirement=name,
        verdict=Verdict.INCONCLUSIVE,
        reason=f"{said}, across the bound {bound:g}; {settles(requirement.metric)} would settle it",
    )


def too_few(result: Result) -> str | None:
    """Why nothing can be said of an accuracy: next to no samples, or one class."""
    evaluation = result["details"].get("evaluation") or {}
    samples, classes = evaluation.get("samples"), evaluation.get("classes")
    if samples is not None and samples < _LEAST_SAMPLES:
        return f"the test split has {samples} samples: no accuracy is judged; more samples would settle it"
    if classes is not None and classes < 2:
        return "the test split has one class: no accuracy is judged; samples of the others would settle it"
    return None


def drift(result: Result) -> str | None:
    """Why absolute times of a row mean nothing: the machine is not as fast as when it was calibrated."""
    reference = result["details"].get("benchmark", {}).get("reference") or {}
    now, kept = reference.get("milliseconds"), reference.get("on_record_ms")
    if not now or not kept or abs(now / kept - 1) <= DRIFT:
        return None
    return (
        f"the reference workload takes {now:.3g} ms, and {kept:.3g} ms are on record: absolute times say nothing; "
        "a quieter machine or a new calibration would settle it"
    )


def settles(metric: str) -> str:
    """What would decide an interval that lies across its bound."""
    if metric in {"accuracy", "accuracy_drop", "f1"}:
        return "more test samples"
    return "a larger benchmark.budget_seconds or a quieter machine"


def fits(name: str, result: Result) -> Judged:
    """Whether a design fits its device."""
    fits = result["details"].get("fits")
    fpga = result["details"].get("fpga", {})
    if fits is None and fpga.get("not_judged"):
        return Judged(
            requirement=name,
            verdict=Verdict.INCONCLUSIVE,
            reason=f"the device's profile does not count {', '.join(fpga['not_judged'])}; its number would settle it",
        )
    if fits is None:
        return Judged(
            requirement=name, verdict=Verdict.FAIL, reason="the device has no resources to fit into"
        )
    short = "; ".join([*fpga.get("short", []), *([fpga["missed"]] if fpga.get("missed") else [])])
    return Judged(
        requirement=name,
        verdict=Verdict.PASS if fits else Verdict.FAIL,
        reason="the upper end of the band fits" if fits else f"does not fit: {short}",
    )


def interval_of(metric: str, result: Result) -> tuple[float, float] | None:
    """Both ends of what is known of a metric; equal where the number is exact."""
    details = result["details"]
    if metric in {"accuracy", "accuracy_drop", "f1"}:
        pair = details.get("evaluation", {}).get(f"{metric}_interval")
    elif metric == "speedup":
        pair = result["speedup"]
    elif metric == "relative_latency":
        return _inverted(result["speedup"])
    elif metric == "activation_bytes":
        value = details.get(metric)
        return None if value is None else (float(value), float(value))
    elif metric == "latency_ms":
        pair = result["latency_ms"]
    else:
        value = result.get(metric)
        return None if value is None else (float(value), float(value))
    if pair is None or pair.get("low") is None or pair.get("high") is None:
        return None
    return float(pair["low"]), float(pair["high"])


def _inverted(speedup: Any) -> tuple[float, float] | None:
    """Share of the float model's latency, from the speed-up over it."""
    if speedup is None or not speedup.get("low") or not speedup.get("high"):
        return None
    return 1 / float(speedup["high"]), 1 / float(speedup["low"])


def judge_row(requirements: Sequence[Requirement], result: Result) -> tuple[Verdict | None, list[Judged]]:
    """All requirements that concern a row; no verdict where none does or the target is not here."""
    if not result["details"].get("applicable", True):
        return None, []
    mine = [r for r in requirements if r.target in {None, result["target"]}]
    goals = goals_of(result)
    if result["status"] == "unavailable" and all(r.target is None for r in mine):
        return None, []  # nothing was promised for this target by name; it is listed as not checked
    judged = [*(judge(requirement, result) for requirement in mine), *goals]
    return (worst([j.verdict for j in judged]) if judged else None), judged


def goals_of(result: Result) -> list[Judged]:
    """What the candidate's own steps were asked to reach; a missed goal fails like a requirement."""
    if result["status"] != "ok":
        return []
    found = []
    for pruned in result["details"].get("pruning_goals", []):
        reached, goal = pruned["reached"], pruned["goal"]
        low, high = reached["low"], reached["high"]
        said = f"{pruned['unit']} of {reached['estimate']:.3g} [{low:.3g}, {high:.3g}] of the float model's"
        verdict = Verdict.FAIL if low is not None and low > goal else Verdict.INCONCLUSIVE
        if high is not None and high <= goal:
            verdict = Verdict.PASS
        if not pruned["met"] and verdict is not Verdict.FAIL:
            verdict = Verdict.INCONCLUSIVE
        stage = pruned.get("stage", "prune")
        reason = f"{'pruning' if stage == 'prune' else stage} reached a {pruned['tier']} {said}"
        if pruned["exhausted"]:
            reason += "; no legal widths are cheaper, and this is the nearest"
        name = f"{pruned['unit']} ≤ {goal:g} of float (goal of {stage})"
        found.append(Judged(requirement=name, verdict=verdict, reason=reason))
    auto = result["details"].get("auto")
    if auto:
        verdict = Verdict.PASS if auto["met"] else Verdict.FAIL
        said = f"loses {auto['validation_drop'] * 100:.2f} pp at {auto['latency']:.3f} of the float latency"
        name = f"{auto['goal']} (goal of recipe auto, on the validation split)"
        reason = f"its version {said}; {auto['stopped']}"
        found.append(Judged(requirement=name, verdict=verdict, reason=reason))
    return found


def choose(rows: Sequence[Result]) -> Result | None:
    """The version to ship on one target: of those that pass, the fastest; the smaller where none is faster.

    Rows are compared by their speed-up over the float model, which was measured beside each of them, and by
    their latency where there is none (estimates): latencies of different steps were not measured side by
    side. A row counts as faster only where its whole interval says so.
    """
    passing = [row for row in rows if row["verdict"] == Verdict.PASS.value and row["status"] == "ok"]
    if not passing:
        return None
    speeds = {id(row): speed for row in passing if (speed := _speed(row)) is not None}
    if not speeds:
        return min(passing, key=lambda row: (row["file_bytes"], row["accuracy_drop"]))
    fastest = max(speeds.values(), key=lambda speed: speed.estimate)
    level = [row for row in passing if id(row) in speeds and speeds[id(row)].high >= fastest.low]
    return min(level, key=lambda row: (row["file_bytes"], row["accuracy_drop"]))


def _speed(row: Result) -> Interval | None:
    """How fast a row is, for comparing with others of its target; unknown ends are infinitely far."""
    ratio, latency = row["speedup"], row["latency_ms"]
    if ratio is not None and ratio["estimate"] is not None:
        low, high = ratio["low"], ratio["high"]
        return Interval(
            ratio["estimate"],
            float("-inf") if low is None else low,
            float("inf") if high is None else high,
        )
    if latency is None or not latency["p50"]:
        return None
    low, high = latency.get("low") or latency["p50"], latency.get("high") or latency["p50"]
    return Interval(1 / latency["p50"], 1 / high, 1 / low)


def run_verdict(requirements: Sequence[Requirement], results: Sequence[Result]) -> Verdict:
    """PASS when every judged target has a version that passes; else the best that its rows came to.

    Without requirements there is nothing to fail but the steps themselves.
    """
    verdicts = []
    named = {requirement.target for requirement in requirements}
    for target in dict.fromkeys(row["target"] for row in results):
        mine = [Verdict(row["verdict"]) for row in results if row["target"] == target and row["verdict"]]
        for best in (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL):
            if best in mine:
                verdicts.append(best)
                break
        if not mine and target in named:
            verdicts.append(Verdict.FAIL)  # something was asked of this target, and no version could show it
    if not verdicts:
        anything = any(row["status"] == "ok" for row in results)
        return Verdict.PASS if anything and not requirements else Verdict.INCONCLUSIVE
    return worst(verdicts)
