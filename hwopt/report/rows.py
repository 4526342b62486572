"""The results of a record as cells of text, the same for every rendering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hwopt.core.measurement import DRIFT
from hwopt.report.learning import notes

Record = Mapping[str, Any]

HEADINGS: Final = (
    "candidate",
    "target",
    "accuracy",
    "drop",
    "p50 latency",
    "speed-up",
    "size",
    "integer",
    "tier",
    "verdict",
)
_NONE: Final = "–"


def cells(result: Mapping[str, Any], chosen: bool) -> list[str]:
    """One row; missing numbers are a dash, their reasons stand below the table."""
    away = "not here" if result["details"]["applicable"] else "not applicable"
    verdict = result["verdict"] or (away if result["status"] == "unavailable" else _NONE)
    if result["status"] == "failed":
        verdict = "failed"
    return [
        result["candidate"] + (" ←" if chosen else ""),
        result["target"],
        percent(result["accuracy"]),
        points(result["accuracy_drop"]),
        latency(result["latency_ms"]),
        speedup(result["speedup"]),
        size(result["file_bytes"]),
        _NONE if result["integer_share"] is None else f"{result['integer_share']:.0%}",
        result["tier"] or _NONE,
        verdict,
    ]


def percent(value: float | None) -> str:
    """Share to per cent."""
    return _NONE if value is None else f"{value:.2%}"


def points(value: float | None) -> str:
    """Difference of shares to percentage points."""
    return (
        _NONE
        if value is None
        else f"{value * 100 + 0.0:+.2f} pp".replace("+0.00", "0.00").replace("-0.00", "0.00")
    )


def latency(value: Mapping[str, Any] | None) -> str:
    """p50 in ms or µs."""
    if value is None:
        return _NONE
    p50 = value["p50"]
    return f"{p50:.3g} ms" if p50 >= 0.1 else f"{p50 * 1e3:.3g} µs"


def speedup(value: Mapping[str, Any] | None) -> str:
    """Ratio with its interval."""
    if value is None or value["estimate"] is None:
        return _NONE
    if value["low"] is None or value["high"] is None:
        return f"{value['estimate']:.2f}× [too few pairs]"
    if value["low"] == value["high"]:
        return f"{value['estimate']:.2f}×"
    return f"{value['estimate']:.2f}× [{value['low']:.2f}, {value['high']:.2f}]"


def size(value: int | None) -> str:
    """Bytes in kB, 1 kB = 1000 bytes."""
    return _NONE if value is None else f"{value / 1000:,.0f} kB"


def choices(record: Record) -> list[tuple[str, str | None]]:
    """Targets in the order of the profile, each with the candidate to ship."""
    return [(t, record["choice"].get(t)) for t in dict.fromkeys(r["target"] for r in record["results"])]


def table(record: Record) -> list[list[str]]:
    """All rows of a record; a target that is not here takes one line."""
    found: list[list[str]] = []
    for target, choice in choices(record):
        rows = [r for r in record["results"] if r["target"] == target]
        if rows and all(r["status"] == "unavailable" and r["details"]["applicable"] for r in rows):
            found.append([f"all {len(rows)}", target, *[_NONE] * (len(HEADINGS) - 3), "not here"])
        else:
            found += [cells(r, choice == r["candidate"]) for r in rows]
    return found


def sentence(record: Record) -> str:
    """The verdict in one sentence."""
    chosen = [f"{candidate} on {target}" for target, candidate in choices(record) if candidate]
    if not record["requirements"]:
        return f"{record['verdict']}: no requirements were stated, so no version is chosen"
    ship = f"ship {', '.join(chosen)}" if chosen else "no version meets its requirements"
    return f"{record['verdict']}: {ship}"


def warnings(record: Record) -> list[str]:
    """What must not be overlooked: slower than float, disturbed measurements, float operators."""
    found = []
    for r in record["results"]:
        place = f"{r['candidate']} on {r['target']}"
        if r["status"] == "failed":
            fix = r["details"].get("fix")
            found.append(f"{place} failed: {r['reason']}" + (f" → {fix}" if fix else ""))
            continue
        benchmark = r["details"].get("benchmark", {})
        if benchmark.get("no_faster_because"):
            own = min(
                benchmark["speedup_in_its_runtime"], r["speedup"], key=lambda ratio: ratio["estimate"] or 0
            )
            slower = own["high"] is not None and own["high"] < 1
            why = "; ".join(f"{c['text']} → {c['fix']}" for c in benchmark["no_faster_because"])
            found.append(
                f"{place} is {'slower' if slower else 'no faster'} than float: {speedup(own)}; {why}"
            )
        pairs = benchmark.get("pairs", {})
        if pairs.get("degraded"):
            found.append(
                f"{place}: only {pairs['clean_share']:.0%} of the timed pairs were undisturbed; the machine "
                "was busy"
            )
        on_record = (benchmark.get("reference") or {}).get("on_record_ms")
        if on_record and abs(benchmark["reference"]["milliseconds"] / on_record - 1) > DRIFT:
            found.append(
                f"{place}: the machine ran at {on_record / benchmark['reference']['milliseconds']:.2f} times the "
                "speed it was calibrated at; no absolute limit is judged"
            )
        for warning in [w for state in benchmark.get("gpu") or [] for w in state["warnings"]]:
            found.append(f"{place}: {warning}")
        if benchmark.get("steady") is False:
            found.append(f"{place}: the runtime did not reach a steady state before timing")
        floats = r["details"].get("evaluation", {}).get("float_operators") or []
        share = r["integer_share"]
        chosen = r["details"].get("where_faster") or r["details"].get("auto")  # to leave layers in float
        if r["details"]["asked_integer"] and share is not None and share < 1 and not chosen:
            found.append(
                f"{place} was quantized, and {len(floats)} weighted operators run in float: "
                f"{', '.join(floats[:4])}"
            )
        found += _of_pruning(r, place)
    found += _quantized_slower(record)
    found += _drifted(record)
    return [*found, *notes(record)]


def _drifted(record: Record) -> list[str]:
    """Targets whose rows were measured while the machine ran at different speeds."""
    found = []
    for target, _ in choices(record):
        times = {
            r["candidate"]: r["details"]["benchmark"]["reference"]["milliseconds"]
            for r in record["results"]
            if r["target"] == target and (r["details"].get("benchmark") or {}).get("reference")
        }
        if times and max(times.values()) / min(times.values()) > 1 + DRIFT:
            fast, slow = min(times, key=lambda c: times[c]), max(times, key=lambda c: times[c])
            found.append(
                f"the machine ran at different speeds while it measured {target}: the reference workload took "
                f"{times[fast]:.3g} ms beside {fast} and {times[slow]:.3g} ms beside {slow}. Compare speed-ups, "
                "not latencies"
            )
    return found


def _of_pruning(r: Mapping[str, Any], place: str) -> list[str]:
    """Goals that were missed, and zeros that bring no speed."""
    found = []
    goal = r["details"].get("pruning_goal")
    if goal and not goal["met"]:
        found.append(
            f"{place} was to be pruned to {goal['goal']:g} of the float {goal['unit']}, and reached "
            f"{goal['reached']['estimate']:.3f} ({goal['tier']})"
        )
    auto = r["details"].get("auto")
    if auto and not auto["met"]:
        found.append(f"{place}: recipe auto did not find {auto['goal']}; {auto['stopped']}")
    zeros = r["details"].get("zero_weights")
    if zeros:
        found.append(f"{place}: {zeros['share']:.0%} of the weights are zero{_brings(r)}")
    return found


def _brings(r: Mapping[str, Any]) -> str:
    """What zeros brought: measured speed, or size only."""
    packed = r["details"].get("deflated_bytes")
    text = f"; compressed the file takes {size(packed)} instead of {size(r['file_bytes'])}" if packed else ""
    ratio = r["speedup"]
    if not ratio or ratio["low"] is None:
        return text + "; whether that is faster was not measured here"
    if r["details"].get("cuts") or r["details"]["asked_integer"]:
        return text + "; what the zeros add to the speed of the other steps was not measured apart"
    if ratio["low"] > 1:
        return text + f", and it is faster: {speedup(ratio)}"
    return text + f", and no faster on this runtime: {speedup(ratio)}"


def _where(slow: Mapping[str, Any], fast: Mapping[str, Any] | None) -> str:
    """The operators that take longer in ``slow``, by the runtime's own clock."""
    mine = slow["details"].get("benchmark", {}).get("operator_microseconds", {})
    theirs = (fast or slow)["details"].get("benchmark", {}).get("operator_microseconds", {})
    more = {name: time - theirs.get(name, 0.0) for name, time in mine.items()}
    worst = sorted((name for name in more if more[name] > 0), key=lambda name: -more[name])[:3]
    if not worst:
        return ""
    parts = [f"{name} {mine[name]:.1f} µs against {theirs.get(name, 0.0):.1f}" for name in worst]
    return "; it loses time in " + ", ".join(parts)


def _quantized_slower(record: Record) -> list[str]:
    """Pairs of versions where the quantized one has the same layers and is the slower one."""
    found = []
    for target, _ in choices(record):
        rows = [
            r for r in record["results"] if r["target"] == target and r["tier"] == "measured" and r["speedup"]
        ]
        for r in rows:
            for other in rows:
                same_layers = r["macs"] == other["macs"] and r["macs"] is not None
                if same_layers and (r["integer_share"] or 0) > 0 and other["integer_share"] == 0:
                    high, low = r["speedup"]["high"], other["speedup"]["low"]
                    is_float_baseline = other["speedup"]["low"] == other["speedup"]["high"] == 1.0
                    if high is not None and low is not None and high < low and not is_float_baseline:
                        found.append(
                            f"{r['candidate']} on {target} is slower than {other['candidate']}, "
                            f"the same layers in float: {speedup(r['speedup'])} against "
                            f"{speedup(other['speedup'])}{_where(r, other)}"
                        )
    return found
