"""What is looked at in a record, check by check, with the bounds of docs/readiness.md. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hwopt.core.advisories import open_in
from hwopt.core.canonical import JSON
from hwopt.core.measurement import Tier

PASS, FAIL, OPEN, WARN, SKIPPED = "PASS", "FAIL", "OPEN", "WARN", "SKIPPED"

DROP: Final = 0.01  # of accuracy, where no requirement says otherwise
SLICE: Final = 2.0  # times the budget, for one class
AGREEMENT: Final = 0.99  # with the torch network, of a quantized version
FLOAT_PARITY: Final = 1e-4  # of the greatest output, of a float version
PARITY_SAMPLES: Final = 256
OVERLAP: Final = 0.001  # share of test samples that training has seen, from where on it fails
CLEAN: Final = 0.5  # share of undisturbed pairs below which a warning is due

Row = Mapping[str, Any]
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    section: int  # from 1
    target: str | None  # None: of the run
    name: str
    status: str
    said: str
    asked: str = ""  # the bound
    declared: bool = False  # by the user, and not looked at by hwopt

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "target": self.target,
            "check": self.name,
            "status": self.status,
            "said": self.said,
            "asked": self.asked,
            "declared": self.declared,
        }


# --- of the run ------------------------------------------------------------------------------------------


def run_checks(record: Record) -> Iterator[Check]:
    """Of what belongs to the run: provenance, reproducibility, libraries, rollout."""
    source, data = record.get("source"), record.get("data") or {}
    if source is None:
        yield Check(1, None, "commit", WARN, "the profile lies in no git repository", "a commit")
    elif source["dirty"]:
        yield Check(
            1, None, "commit", WARN, f"{source['commit'][:12]}, with changes that are not committed", "clean"
        )
    else:
        yield Check(1, None, "commit", PASS, str(source["commit"][:12]))
    yield Check(1, None, "profile", PASS, record["profile"]["digest"])
    yield _there(1, "data", data.get("digest"), "digest of the data's contents")
    yield Check(1, None, "seed", PASS, f"{record['seed']}, {record['threads']} threads")
    yield Check(
        1, None, "signature", WARN, "the record is not signed", "a signature of your own, over the bundle"
    )
    yield _reproduced(record)
    weak = open_in(record["environment"]["libraries"])
    said = "; ".join(f"{a.library}: {a.name}, {a.what}, mended in {a.fixed}" for a in weak)
    yield Check(
        11,
        None,
        "known weaknesses of libraries",
        FAIL if weak else PASS,
        said or "none that is listed",
        "none",
    )
    release = record.get("release") or {}
    yield _declared(11, "licence of the model", release.get("model_licence"))
    yield _declared(11, "licence of the data", release.get("data_licence"))
    yield _rollback(release)
    yield _declared(12, "how to restore", release.get("restore"))
    yield _declared(12, "canary", release.get("canary"))
    yield _declared(12, "signals that are watched", ", ".join(release.get("signals") or ()) or None)
    expires = release.get("expires")
    late = bool(expires) and str(expires) < str(record["started"])[:10]
    yield Check(
        12,
        None,
        "expiry",
        FAIL if late else PASS if expires else WARN,
        f"{'it ended on ' if late else ''}{expires}" if expires else "not declared",
        "a day to look again",
        declared=True,
    )
    for text in record["not_checked"]:
        yield Check(13, None, "left out", SKIPPED, str(text))


def _there(section: int, name: str, value: object, asked: str) -> Check:
    return Check(section, None, name, PASS if value else WARN, str(value or "not recorded"), asked)


def _declared(section: int, name: str, value: object) -> Check:
    return Check(
        section, None, name, PASS if value else WARN, str(value or "not declared"), "declared", declared=True
    )


def _rollback(release: Mapping[str, Any]) -> Check:
    name, state = release.get("rollback"), release.get("rollback_state")
    if not name:
        return Check(12, None, "rollback", WARN, "not declared", "a run whose files are whole")
    if state is None:
        return Check(
            12, None, "rollback", FAIL, f"{name} is no run of this store", "a run whose files are whole"
        )
    whole = not state["broken"]
    said = f"{name}: run {state['run']}, {state['files']} files" + (
        "" if whole else f", {state['broken']} damaged"
    )
    return Check(12, None, "rollback", PASS if whole else FAIL, said, "a run whose files are whole")


def _reproduced(record: Record) -> Check:
    again = {s["label"]: s["again"] for s in record["steps"] if s["stage"] == "export" and s.get("again")}
    asked = "made again: the same digest"
    if not again:
        return Check(
            9, None, "rebuilt", SKIPPED, "not made twice; `hwopt pipeline run PROFILE --fresh` does", asked
        )
    other = [label for label, state in again.items() if state != "same"]
    said = f"{len(again) - len(other)} of {len(again)} exported files have the same digest" + (
        f"; {', '.join(other[:3])} not" if other else ""
    )
    return Check(9, None, "rebuilt", OPEN if other else PASS, said, asked)


# --- of one version --------------------------------------------------------------------------------------


def row_checks(record: Record, target: str, row: Row) -> list[Check]:
    """Of one version on one target."""
    found: list[Check] = []
    for part in (_identity, _contract, _conformance, _parity, _accuracy, _latency, _resources, _robustness):
        make: Callable[[Record, str, Row], Iterator[Check]] = part
        found += make(record, target, row)
    found += _trade_offs(record, target, row)
    found += _security(record, target, row)
    return found


def _identity(record: Record, target: str, row: Row) -> Iterator[Check]:
    keys = set(row["details"].get("steps", ()))
    digests = [
        o["digest"] for s in record["steps"] if s["key"] in keys for o in s.get("outputs", {}).values()
    ]
    inspected = (row["details"].get("inspection") or {}).get("model_digest")
    timed = (row["details"].get("benchmark") or {}).get("model_digest")
    measured = row["details"].get("evaluation", {}).get("model_digest")
    if not digests:
        yield Check(
            1, target, "one file", OPEN, "an earlier hwopt wrote no digests of files down", "one digest"
        )
        return
    same = {inspected, timed} <= {None, measured} and measured in digests
    yield Check(
        1,
        target,
        "one file",
        PASS if same else FAIL,
        f"{measured}: {row['candidate']}, exported, evaluated, timed and inspected"
        if same
        else "export, evaluation, timing and inspection do not name the same file",
        "one digest",
    )


def _contract(record: Record, target: str, row: Row) -> Iterator[Check]:
    found = (row["details"].get("inspection") or {}).get("contract")
    if found is None:
        yield Check(2, target, "inputs and outputs", OPEN, "not inspected")
        return
    release = record.get("release") or {}
    for side in ("inputs", "outputs"):
        shown = "; ".join(f"{v['name']} {v['dtype']} {_shape(v['shape'])}" for v in found[side])
        wanted = release.get(side)
        if not wanted:
            yield Check(2, target, side, PASS, shown, "none declared")
            continue
        seen = {v["name"]: v["shape"] for v in found[side]}
        right = seen.keys() == wanted.keys() and all(_fits(seen[name], wanted[name]) for name in seen)
        asked = "; ".join(f"{name} {_shape(shape)}" for name, shape in wanted.items())
        yield Check(2, target, side, PASS if right else FAIL, shown, asked)
    opset, most = found["opset"].get("ai.onnx"), release.get("max_opset")
    yield Check(
        2,
        target,
        "operator set",
        PASS if most is None or opset <= most else FAIL,
        f"{opset}, IR version {found['ir_version']}",
        f"at most {most}" if most else "none declared",
    )
    yield Check(
        2,
        target,
        "preprocessing",
        PASS if release.get("preprocessing") else WARN,
        str(release.get("preprocessing") or "not declared"),
        "declared",
        declared=True,
    )


def _shape(dims: Sequence[object]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _fits(seen: Sequence[object], wanted: Sequence[object]) -> bool:
    """A number must be that number; a name or nothing stands for any free size."""
    if len(seen) != len(wanted):
        return False
    return all(
        (s == w) if isinstance(w, int) else not isinstance(s, int) for s, w in zip(seen, wanted, strict=True)
    )


def _conformance(record: Record, target: str, row: Row) -> Iterator[Check]:
    findings = (row["details"].get("inspection") or {}).get("findings")
    if findings is None:
        yield Check(3, target, "lint", OPEN, "not inspected")
    else:
        errors = [f for f in findings if f["level"] == "error"]
        warns = [f for f in findings if f["level"] == "warning"]
        shown = "; ".join(f"{f['rule']}: {f['text']}" for f in [*errors, *warns][:4])
        said = f"{len(errors)} errors, {len(warns)} warnings" + (f": {shown}" if shown else "")
        yield Check(3, target, "lint", FAIL if errors else WARN if warns else PASS, said, "0 errors")
    evaluation = row["details"].get("evaluation") or {}
    ran, how = row["tier"] == Tier.MEASURED.value, str(evaluation.get("arithmetic", ""))
    said = how if ran else f"nothing ran there; {how}"
    yield Check(3, target, "runs on the device", PASS if ran else OPEN, said, "it ran there")
    asked = evaluation.get("asked_but_float") or []
    share = row["integer_share"]
    if row["details"].get("asked_integer") and share is not None:
        names = ", ".join(a["name"] for a in asked[:4])
        said = f"{share:.0%} of the weighted operators in integer" + (
            f"; in float against the file: {names}" if names else ""
        )
        yield Check(3, target, "precision that ran", WARN if asked else PASS, said, "as the file asks")


def _parity(record: Record, target: str, row: Row) -> Iterator[Check]:
    evaluation = row["details"].get("evaluation") or {}
    parity, agreement = evaluation.get("parity"), row["agreement"]
    if agreement is None or parity is None:
        yield Check(4, target, "agreement", OPEN, "not obtained")
        return
    samples = evaluation["samples"]
    worst = parity["worst"][0] if parity["worst"] else None
    far = "" if worst is None else f"; the farthest is sample {worst['sample']} with {worst['max_abs']:.2e}"
    quantized = bool(row["details"].get("asked_integer"))
    if quantized:
        yield Check(
            4,
            target,
            "agreement with the network",
            PASS if agreement >= AGREEMENT else FAIL,
            f"{agreement:.2%} of {samples:,} samples{far}",
            f"at least {AGREEMENT:.0%}",
        )
    else:
        gap = parity["of_largest"]
        yield Check(
            4,
            target,
            "difference from the network",
            PASS if gap <= FLOAT_PARITY else FAIL,
            f"{gap:.1e} of the greatest output{far}",
            f"at most {FLOAT_PARITY:.0e}",
        )
    yield Check(
        4,
        target,
        "samples of it",
        PASS if samples >= PARITY_SAMPLES else WARN,
        f"{samples:,}",
        f"at least {PARITY_SAMPLES}",
    )


def _budget(record: Record, target: str) -> float:
    """The accuracy that may be lost: of the requirement where there is one."""
    for text in record.get("bounds") or ():
        if text["metric"] == "accuracy_drop" and text["max"] is not None and text["target"] in {None, target}:
            return float(text["max"])
    return DROP


def _accuracy(record: Record, target: str, row: Row) -> Iterator[Check]:
    evaluation = row["details"].get("evaluation") or {}
    drop, budget = evaluation.get("accuracy_drop_interval"), _budget(record, target)
    if drop is None or drop.get("high") is None:
        yield Check(5, target, "drop", FAIL, "not obtained", f"at most {budget * 100:g} pp")
        return
    low, high = drop["low"], drop["high"]
    said = f"{row['accuracy']:.2%}; the drop lies in [{low * 100:+.2f}, {high * 100:+.2f}] pp (95 %, paired)"
    enough = evaluation["samples"] >= 2 and evaluation.get("classes", 2) >= 2
    status = PASS if high <= budget else FAIL if low > budget else OPEN
    if not enough:
        status, said = (
            OPEN,
            f"{evaluation['samples']} samples of {evaluation.get('classes')} classes decide nothing",
        )
    yield Check(5, target, "drop", status, said, f"upper end at most {budget * 100:g} pp")
    yield from _classes(target, evaluation.get("slices") or [], SLICE * budget)
    overlap = evaluation.get("seen_in_training")
    if overlap is not None:
        share = overlap / max(1, evaluation["samples"])
        yield Check(
            5,
            target,
            "test samples seen in training",
            PASS if not overlap else FAIL if share > OVERLAP else WARN,
            f"{overlap} of {evaluation['samples']:,}, byte for byte",
            "none",
        )


def _classes(target: str, slices: Sequence[Mapping[str, Any]], bound: float) -> Iterator[Check]:
    """Every class, paired; the interval is wider the more classes there are (Bonferroni).

    A class fails where its whole interval is beyond the bound, and is open where only its loss is: the upper end of a
    class of few samples would never pass.
    """
    if not slices:
        return
    states = [FAIL if s["low"] > bound else OPEN if s["drop"] > bound else PASS for s in slices]
    worst = next((state for state in (FAIL, OPEN) if state in states), PASS)
    named = [s for s, state in zip(slices, states, strict=True) if state == worst][
        : 3 if worst != PASS else 1
    ]
    said = "; ".join(
        f"class {s['class']} loses {s['drop'] * 100:.2f} pp, [{s['low'] * 100:+.2f}, {s['high'] * 100:+.2f}] "
        f"({s['samples']} samples)"
        for s in named
    )
    yield Check(5, target, "every class", worst, said, f"at most {bound * 100:g} pp")


def _latency(record: Record, target: str, row: Row) -> Iterator[Check]:
    for judged in row["details"].get("requirements", []):
        if judged["requirement"].startswith(("latency_ms", "relative_latency", "speedup")):
            state = {"PASS": PASS, "FAIL": FAIL, "INCONCLUSIVE": OPEN}[judged["verdict"]]
            yield Check(6, target, judged["requirement"], state, judged["reason"], judged["requirement"])
    latency, tier = row["latency_ms"], row["tier"]
    if latency is None:
        why = (row["details"].get("missing") or {}).get("latency_ms", "not obtained")
        yield Check(6, target, "latency", OPEN, why, "measured on the device")
        return
    bounds = [f"p50 {latency['p50']:.4g} ms"]
    bounds += [f"{p} ≤ {latency[p + '_bound']:.4g} ms" for p in ("p90", "p99") if latency.get(p + "_bound")]
    if tier == Tier.MEASURED.value:
        yield Check(6, target, "latency", PASS, ", ".join(bounds) + " (measured)", "measured on the device")
    else:
        yield Check(
            6,
            target,
            "latency",
            OPEN,
            f"{bounds[0]} is {tier}: nothing ran on the device",
            "measured on the device",
        )
    pairs = (row["details"].get("benchmark") or {}).get("pairs") or {}
    if "clean_share" in pairs:
        share = pairs["clean_share"]
        yield Check(
            6,
            target,
            "undisturbed pairs",
            PASS if share >= CLEAN else WARN,
            f"{share:.0%} of {pairs['count']}",
            f"at least {CLEAN:.0%}",
        )
    speed = row["speedup"]
    if speed and speed["low"] is not None and speed["high"] is not None and speed["low"] != speed["high"]:
        state = PASS if speed["low"] > 1 else WARN
        yield Check(
            6,
            target,
            "faster than float",
            state,
            f"[{speed['low']:.2f}, {speed['high']:.2f}] times",
            "the whole interval above 1",
        )


def _resources(record: Record, target: str, row: Row) -> Iterator[Check]:
    for judged in row["details"].get("requirements", []):
        if judged["requirement"].startswith(("file_bytes", "fits")):
            state = {"PASS": PASS, "FAIL": FAIL, "INCONCLUSIVE": OPEN}[judged["verdict"]]
            yield Check(7, target, judged["requirement"], state, judged["reason"], judged["requirement"])
    yield Check(7, target, "file", PASS, f"{row['file_bytes']:,} bytes" if row["file_bytes"] else "unknown")
    benchmark = row["details"].get("benchmark") or {}
    memory = (benchmark.get("memory_mb") or {}).get("added")
    if memory is not None:
        load, first = (benchmark.get(name) or 0.0 for name in ("load_ms", "first_inference_ms"))
        yield Check(
            7,
            target,
            "memory and start",
            PASS,
            f"{memory:.1f} MB, loads in {load:.1f} ms, first answer after {first:.2f} ms, in a fresh process",
        )
    fpga = row["details"].get("fpga")
    if fpga:
        yield Check(
            7,
            target,
            "design",
            OPEN,
            f"{fpga.get('verdict', 'a design')}: estimated, not synthesized",
            "placed and routed by the vendor's tools",
        )


def _robustness(record: Record, target: str, row: Row) -> Iterator[Check]:
    tried = (row["details"].get("inspection") or {}).get("robustness")
    if tried is None:
        yield Check(8, target, "tried", SKIPPED, "no runtime executes the file on this device")
        return
    names = {
        "batches": "batch 1 and the greatest",
        "wrong_type": "input of another type",
        "wrong_shape": "input of another shape",
        "not_a_number": "NaN in the input",
        "again": "the same answer again",
        "together": "two sessions at once",
        "soak": "many calls",
    }
    for probe, name in names.items():
        one = tried.get(probe)
        if one is None:
            said = "inspect.soak_seconds is 0; 600 is the usual"
            yield Check(8, target, name, SKIPPED, said, "memory grows less than 1 %")
            continue
        hidden = probe == "not_a_number" and one["ok"] and one.get("shows") is False
        yield Check(
            8,
            target,
            name,
            WARN if hidden else PASS if one["ok"] else FAIL,
            one["why"],
            "no crash, and right after it",
        )


def _trade_offs(record: Record, target: str, row: Row) -> Iterator[Check]:
    may = [r for r in record["results"] if record.get("ship") in {None, r["candidate"]}]
    beaten = [r["candidate"] for r in may if r["target"] == target and dominates(r, row)]
    said = (
        f"{', '.join(beaten)} is better in speed, accuracy and size"
        if beaten
        else "no version beats it in everything"
    )
    yield Check(10, target, "on the front", FAIL if beaten else PASS, said, "not dominated at the intervals")


def dominates(one: Row, other: Row) -> bool:
    """Whether ``one`` is surely faster, surely no less accurate and no larger."""
    if (
        one is other
        or one["status"] != "ok"
        or one["verdict"] == "FAIL"
        or not one["latency_ms"]
        or not other["latency_ms"]
    ):
        return False
    mine, theirs = one["speedup"], other["speedup"]
    if mine and theirs and mine["low"] is not None and theirs["high"] is not None:
        faster = mine["low"] > theirs["high"]
    else:
        faster = (one["latency_ms"].get("high") or one["latency_ms"]["p50"]) < (
            other["latency_ms"].get("low") or other["latency_ms"]["p50"]
        )
    better = (one["accuracy"] or 0) >= (other["accuracy"] or 0)
    return faster and better and (one["file_bytes"] or 0) <= (other["file_bytes"] or 0)


def _security(record: Record, target: str, row: Row) -> Iterator[Check]:
    contract = (row["details"].get("inspection") or {}).get("contract") or {}
    yield Check(
        11,
        target,
        "format",
        PASS,
        "ONNX: no pickle, checked before any runtime read it",
        "no code in the file",
    )
    outside = contract.get("external_data")
    yield Check(
        11,
        target,
        "weights in the file",
        WARN if outside else PASS,
        "in other files" if outside else "all of them",
        "in one file, or inside the folder",
    )
