"""Two recorded versions beside each other: what does not change is read, what does is measured now, interleaved."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwopt.api.bench import benchmark
from hwopt.core.stage import Progress
from hwopt.engine.gate import Against
from hwopt.errors import ConfigError, EngineMissingError, HwoptError, StageFailedError
from hwopt.numerics.intervals import paired_drop_interval
from hwopt.plugins import did_you_mean
from hwopt.store.store import Store

_COUNTED = ("file_bytes", "macs", "parameters")


@dataclass(frozen=True, slots=True)
class Version:
    """A row of a record."""

    record: Mapping[str, Any]
    row: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.row['candidate']} of {self.record['run']}"

    def output(self, place: Store, stage: str, port: str) -> Path | None:
        """The file that its step of ``stage`` gave, if it is whole; of several runtimes the one that counts."""
        details = self.row["details"]
        keys = set(details.get("counted") or details["steps"])
        digests = [
            s["outputs"][port]["digest"]
            for s in self.record["steps"]
            if s["key"] in keys and s["stage"] == stage and port in s.get("outputs", {})
        ]
        wanted = self.row["details"].get("evaluation", {}).get("model_digest")
        if stage == "export" and wanted in digests:
            digests = [wanted]
        return place.object_path(digests[-1]) if digests and place.whole(digests[-1]) else None


def find(record: Mapping[str, Any], target: str, candidate: str | None) -> Version | None:
    """The version of that name on a target; None where the run has none."""
    rows = (r for r in record["results"] if r["target"] == target and r["candidate"] == candidate)
    row = next(rows, None)
    return None if row is None else Version(record, row)


def known_candidate(record: Mapping[str, Any], name: str | None) -> None:
    """ConfigError with a hint where a record has no version of that name; None is the one to ship."""
    known = {r["candidate"] for r in record["results"]}
    if name and name not in known:
        raise ConfigError(f"{record['run']} has no version {name!r}", fix=did_you_mean(name, known))


def comparable(mine: Mapping[str, Any], base: Mapping[str, Any], *, across_versions: bool) -> None:
    """ConfigError where two records were evaluated on other data, or by other versions of the libraries."""
    if (mine.get("data") or {}).get("digest") != (base.get("data") or {}).get("digest"):
        raise ConfigError(
            f"{base['run']} was evaluated on other data than {mine['run']}",
            fix="run its profile again on today's data",
        )
    now, then = mine["environment"]["libraries"], base["environment"]["libraries"]
    other = sorted(n for n in ("hwopt", "torch", "onnx", "onnxruntime", "numpy") if now.get(n) != then.get(n))
    if other and not across_versions:
        shown = ", ".join(f"{n} {then.get(n)} then, {now.get(n)} now" for n in other)
        raise ConfigError(
            f"{base['run']} was made by other versions: {shown}",
            fix="run its profile again, or say --across-versions",
        )


def against(place: Store, mine: Version, base: Version, wanted: set[str], say: Progress) -> Against:
    """Ratios of ``mine`` to ``base``, each with both ends of its interval; of accuracy_drop, the drop."""
    ratios: dict[str, tuple[float, float]] = {}
    missing: dict[str, str] = {}
    undecided: dict[str, str] = {}
    for metric in sorted(wanted & set(_COUNTED)):
        ours, theirs = mine.row[metric], base.row[metric]
        if ours is None or not theirs:
            missing[metric] = "it is not on record of both"
        else:
            ratios[metric] = (ours / theirs, ours / theirs)
    if wanted & {"accuracy", "accuracy_drop"}:
        _accuracies(place, mine, base, ratios, missing)
    if "latency_ms" in wanted:
        try:
            ratios["latency_ms"] = _latency(place, mine, base, say)
        except EngineMissingError:
            raise
        except StageFailedError as error:
            undecided["latency_ms"] = error.problems[0].problem
        except HwoptError as error:
            missing["latency_ms"] = error.problems[0].problem
    return Against(baseline=str(base), ratios=ratios, missing=missing, undecided=undecided)


def _accuracies(
    place: Store,
    mine: Version,
    base: Version,
    ratios: dict[str, tuple[float, float]],
    missing: dict[str, str],
) -> None:
    """Paired on the test samples: both versions' predictions are on record."""
    right = []
    for one in (mine, base):
        path = one.output(place, "evaluate", "predictions")
        if path is None:
            missing.update(
                dict.fromkeys(("accuracy", "accuracy_drop"), f"predictions of {one} are not in the store")
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
    share = float(right[1].mean())
    if share:
        ratios["accuracy"] = (1 - high / share, 1 - low / share)


def _latency(place: Store, mine: Version, base: Version, say: Progress) -> tuple[float, float]:
    """Time over the base's, by interleaved pairs measured now."""
    recipe, other = (one.row["details"].get("benchmark") for one in (mine, base))
    paths = [one.output(place, "export", "model") for one in (base, mine)]
    if recipe is None or other is None or None in paths:
        raise ConfigError("it was not measured, or its file is not in the store")
    for name in ("runtime", "recipe", "batch", "rate_hz"):
        if recipe[name] != other[name]:
            raise StageFailedError(
                f"the two are deployed differently ({name}: {recipe[name]} against {other[name]}), so that a ratio of "
                "their files says nothing; running the baseline's profile with the same settings would settle it"
            )
    if paths[0] == paths[1]:
        return 1.0, 1.0  # one file
    say(f"{mine} against {base} on {mine.row['target']}")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("base.onnx", "mine.onnx")]
        for path, file in zip(paths, files, strict=True):
            shutil.copyfile(str(path), file)
        found = benchmark(
            files,
            target=mine.row["target"],
            runtimes=(recipe["runtime"],),
            threads=recipe["recipe"]["threads"],
            batch=recipe["batch"],
            spinning=recipe["recipe"]["spinning"],
            progress=say,
            **({} if recipe["rate_hz"] is None else {"scenario": "paced", "rate_hz": recipe["rate_hz"]}),
        )
    (row,) = (r for r in found["results"] if r["model"] == str(files[1]))
    speed = row["speedup"]
    if not speed or not speed["low"] or not speed["high"]:
        raise StageFailedError("too few timed pairs for an interval; a quieter machine would settle it")
    return 1 / speed["high"], 1 / speed["low"]
