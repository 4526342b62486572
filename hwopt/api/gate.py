"""Hold a recorded run against a policy, and its versions against a baseline that is measured beside them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hwopt.api.bench import benchmark
from hwopt.config.policy import read_policy
from hwopt.core.canonical import JSON, digest_of
from hwopt.core.measurement import Verdict
from hwopt.core.policy import Policy
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.gate import Against, check, verdict_of
from hwopt.errors import ConfigError, HwoptError
from hwopt.numerics.intervals import paired_drop_interval
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
    against, said = _against(place, rules, record, baseline, across_versions, progress)
    readiness = record.get("readiness") or {"targets": {}}
    ready = {
        target: (_WORDS[one["verdict"]], one["why"])
        for target, one in readiness["targets"].items()
        if one["verdict"] in _WORDS
    }
    checked = check(rules, record, against, ready, day)
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


def _against(
    place: Store, rules: Policy, record: Mapping[str, Any], baseline: str | None, across: bool, say: Progress
) -> tuple[dict[tuple[str, str], Against], JSON]:
    relative = [rule for rule in rules.rules if rule.of is not None]
    if baseline is None:
        if relative:
            raise ConfigError(
                f"the rule {relative[0].title!r} is held against a baseline, and none is given",
                fix="give --baseline RUN, for example a tag: hwopt runs tag RUN released",
            )
        return {}, None
    name, _, candidate = baseline.partition(":")
    old = place.record(name)
    if relative:
        _comparable(record, old, across)
    found: dict[tuple[str, str], Against] = {}
    for rule in relative:
        targets = (
            [rule.target] if rule.target else [t for t, c in record["choice"].items() if c or rule.candidate]
        )
        for target in targets:
            mine = _row(record, target, rule.candidate or record["choice"].get(target))
            key = None if mine is None else (mine["candidate"], target)
            if mine is None or mine["status"] != "ok" or key is None or key in found:
                continue
            theirs = _row(old, target, candidate or old["choice"].get(target))
            label = f"{candidate or old['choice'].get(target)} of {old['run']}"
            if theirs is None or theirs["status"] != "ok":
                why = f"the baseline has no version on {target}"
                missing = dict.fromkeys((str(r.metric) for r in relative), why)
                found[key] = Against(baseline=label, ratios={}, missing=missing)
                continue
            wanted = {str(r.metric) for r in relative if r.target in {None, target}}
            found[key] = _measured(place, record, mine, old, theirs, wanted, label, say)
    return found, {"run": old["run"], "candidate": candidate or None}


def _comparable(record: Mapping[str, Any], old: Mapping[str, Any], across: bool) -> None:
    if (record.get("data") or {}).get("digest") != (old.get("data") or {}).get("digest"):
        raise ConfigError(
            "the baseline was evaluated on other data", fix="run the baseline's profile again on today's data"
        )
    mine, theirs = record["environment"]["libraries"], old["environment"]["libraries"]
    other = sorted(
        n for n in ("hwopt", "torch", "onnx", "onnxruntime", "numpy") if mine.get(n) != theirs.get(n)
    )
    if other and not across:
        shown = ", ".join(f"{n} {theirs.get(n)} then, {mine.get(n)} now" for n in other)
        raise ConfigError(
            f"the baseline was made by other versions: {shown}",
            fix="run the baseline's profile again, or say --across-versions",
        )


def _row(record: Mapping[str, Any], target: str, candidate: str | None) -> Mapping[str, Any] | None:
    rows = (r for r in record["results"] if r["target"] == target and r["candidate"] == candidate)
    return next(rows, None)


def _measured(
    place: Store,
    record: Mapping[str, Any],
    mine: Mapping[str, Any],
    old: Mapping[str, Any],
    theirs: Mapping[str, Any],
    wanted: set[str],
    label: str,
    say: Progress,
) -> Against:
    ratios: dict[str, tuple[float, float]] = {}
    missing: dict[str, str] = {}
    for metric in sorted(wanted & {"file_bytes", "macs", "parameters"}):
        if mine[metric] is None or not theirs[metric]:
            missing[metric] = "it is not on record of both"
        else:
            ratios[metric] = (mine[metric] / theirs[metric],) * 2
    if wanted & {"accuracy", "accuracy_drop"}:
        _accuracies(place, record, mine, old, theirs, ratios, missing)
    if "latency_ms" in wanted:
        try:
            ratios["latency_ms"] = _latency(place, record, mine, old, theirs, say)
        except HwoptError as error:
            missing["latency_ms"] = error.problems[0].problem
    return Against(baseline=label, ratios=ratios, missing=missing)


def _accuracies(
    place: Store,
    record: Mapping[str, Any],
    mine: Mapping[str, Any],
    old: Mapping[str, Any],
    theirs: Mapping[str, Any],
    ratios: dict[str, tuple[float, float]],
    missing: dict[str, str],
) -> None:
    """Paired on the test samples: both versions' predictions are on record."""
    right = []
    for one, row in ((record, mine), (old, theirs)):
        path = _output(place, one, row, "evaluate", "predictions")
        if path is None:
            missing.update(
                dict.fromkeys(("accuracy", "accuracy_drop"), "its predictions are not in the store")
            )
            return
        with np.load(path, allow_pickle=False) as archive:
            right.append(archive["logits"].argmax(1) == archive["labels"])
    if len(right[0]) != len(right[1]):
        missing.update(
            dict.fromkeys(("accuracy", "accuracy_drop"), "it was evaluated on another number of samples")
        )
        return
    _, low, high = paired_drop_interval(right[1], right[0])
    ratios["accuracy_drop"] = (low, high)
    base = float(right[1].mean())
    if base:
        ratios["accuracy"] = (1 - high / base, 1 - low / base)


def _latency(
    place: Store,
    record: Mapping[str, Any],
    mine: Mapping[str, Any],
    old: Mapping[str, Any],
    theirs: Mapping[str, Any],
    say: Progress,
) -> tuple[float, float]:
    """Time over the baseline's, by interleaved pairs measured now."""
    recipe = mine["details"].get("benchmark")
    paths = [_output(place, one, row, "export", "model") for one, row in ((old, theirs), (record, mine))]
    if recipe is None or None in paths:
        raise ConfigError("it was not measured, or its file is not in the store")
    if paths[0] == paths[1]:
        return 1.0, 1.0  # one file
    say(f"gate: {mine['candidate']} against the baseline on {mine['target']}")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("baseline.onnx", "candidate.onnx")]
        for path, file in zip(paths, files, strict=True):
            shutil.copyfile(str(path), file)
        found = benchmark(
            files,
            target=mine["target"],
            runtimes=(recipe["runtime"],),
            threads=recipe["recipe"]["threads"],
            batch=recipe["batch"],
            spinning=recipe["recipe"]["spinning"],
            progress=say,
        )
    (row,) = (r for r in found["results"] if r["model"] == str(files[1]))
    speed = row["speedup"]
    if not speed or not speed["low"] or not speed["high"]:
        raise ConfigError("too few timed pairs for an interval")
    return 1 / speed["high"], 1 / speed["low"]


def _output(
    place: Store, record: Mapping[str, Any], row: Mapping[str, Any], stage: str, port: str
) -> Path | None:
    """The file that a row's step of ``stage`` gave, whole; of several runtimes the one that counts."""
    keys = set(row["details"]["steps"])
    digests = [
        s["outputs"][port]["digest"]
        for s in record["steps"]
        if s["key"] in keys and s["stage"] == stage and port in s.get("outputs", {})
    ]
    wanted = row["details"].get("evaluation", {}).get("model_digest")
    if stage == "export" and wanted in digests:
        digests = [wanted]
    if not digests or not place.whole(digests[-1]):
        return None
    return place.object_path(digests[-1])
