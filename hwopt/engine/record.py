"""The document that ``--json`` prints and that reports are rendered from."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import hwopt
from hwopt.core.canonical import JSON, digest_of
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier, Verdict
from hwopt.core.plan import Row
from hwopt.engine import host as this_host
from hwopt.engine.judge import choose, judge_row, run_verdict
from hwopt.engine.prepare import Prepared, host_profile
from hwopt.engine.results import assemble
from hwopt.errors import HwoptError, Problem
from hwopt.report.readiness import assess
from hwopt.store.store import Finished, Store

SCHEMA_VERSION: Final = 2
_RECORDED_LIBRARIES: Final = ("hwopt", "torch", "onnx", "onnxruntime", "onnxscript", "numpy")
# What reads files from outside: looked up among known weaknesses, and recorded where it is installed.
_READERS: Final = ("openvino", "tensorrt", "pyyaml", "protobuf", "pillow", "safetensors", "jinja2")


class Executed(Protocol):
    """What became of the steps of a plan."""

    done: dict[str, Finished]
    failures: dict[str, Problem]
    stopped: dict[str, str]
    entries: dict[str, dict[str, JSON]]


def make_record(
    run_id: str, started: datetime, prepared: Prepared, state: Executed, rollback: JSON
) -> dict[str, Any]:
    """The document that ``--json`` prints and that reports are rendered from."""
    profile, plan = prepared.profile, prepared.plan
    targets = {t.name: t.hardware or prepared.host_profile for t in profile.targets}
    results: list[dict[str, Any]] = [_result(row, targets[row.target], prepared, state) for row in plan.rows]
    requirements: list[JSON] = []
    for result in results:
        asked = profile.ship in {None, result["candidate"]}
        verdict, judged = judge_row(profile.requirements, result) if asked else (None, [])
        result["verdict"] = verdict.value if verdict else None
        result["details"]["requirements"] = [j.to_json() for j in judged]
    for requirement in profile.requirements:
        requirements.append(str(requirement))
    choices: dict[str, JSON] = {}
    for target in targets:
        # Goals of single candidates say nothing about which of all to ship.
        mine = [r for r in results if r["target"] == target]
        best = choose(mine) if profile.requirements else None
        choices[target] = best["candidate"] if best else None
    verdict = run_verdict(profile.requirements, results)
    if any(r["status"] == "failed" for r in results) and verdict is Verdict.PASS and not profile.requirements:
        verdict = Verdict.INCONCLUSIVE
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": run_id,
        "name": profile.name,
        "status": _status(state),
        "verdict": verdict.value,
        "choice": choices,
        "results": list[JSON](results),
        "requirements": requirements,
        "not_checked": _not_checked(results),
        "steps": [state.entries[step.key] for step in plan.steps],
        "training": dict(float_training(prepared, state)) or None,
        "source": source_of(prepared.import_root),
        "data": {"name": profile.data.name or profile.data.factory, "digest": prepared.contents},
        "started": started.isoformat(timespec="seconds"),
        "seconds": (datetime.now(UTC) - started).total_seconds(),
        "seed": profile.seed,
        "threads": prepared.threads,
        "ship": profile.ship,
        "profile": {"path": str(profile.path), "text": profile.text, "digest": digest_of(profile.text)},
        "bounds": [r.to_json() for r in profile.requirements],
        "release": {**profile.release.to_json(), "rollback_state": rollback},
        "environment": environment(),
    }
    record["readiness"] = assess(record)
    return record


def _result(
    row: Row, hardware: HardwareProfile | None, prepared: Prepared, state: Executed
) -> dict[str, Any]:
    timed = (state.done[key].facts.get("benchmark", {}) for key in row.steps if key in state.done)
    counted = row.counted(next((part["runtime"] for part in timed if part), None))
    facts = [state.done[key].facts for key in counted if key in state.done]
    failure = next((state.failures[key] for key in counted if key in state.failures), None)
    stopped = next((state.stopped[key] for key in counted if key in state.stopped), None)
    result: dict[str, Any] = assemble(row, facts, failure, hardware, stopped)
    result["details"]["steps"] = list(row.steps)
    result["details"]["counted"] = list(counted)
    result["details"]["training_cost"] = training_cost(
        [part.get("training") for part in facts], float_training(prepared, state).get("training")
    )
    return result


def float_training(prepared: Prepared, state: Executed) -> Mapping[str, Any]:
    """Facts of the training of the float model; empty where it was not trained here."""
    first = [s for s in prepared.plan.steps if s.stage == prepared.profile.source.stage]
    found = [state.done[s.key].facts for s in first if s.key in state.done]
    return found[0] if found and "history" in found[0] else {}


def _status(state: Executed) -> str:
    """``finished``, or why steps were left out."""
    reasons = set(state.stopped.values())
    if any("--until" in reason for reason in reasons):
        return "until"
    return "budget" if reasons else "finished"


def source_of(root: Path) -> dict[str, JSON] | None:
    """Commit of the project that holds the profile, and whether it is clean; None outside of one."""

    def git(*words: str) -> str | None:
        try:
            said = subprocess.run(
                ["git", "-C", str(root), *words],  # noqa: S607 - the one on the user's path
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return said.stdout.strip() if said.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def training_cost(trainings: list[Any], whole: Any) -> dict[str, JSON] | None:
    """CPU time that a candidate's own steps trained, and in trainings of the float model; None for none."""
    spent = [float(t["cpu_seconds"]) for t in trainings if t]
    if not spent:
        return None
    once = float(whole["cpu_seconds"]) if whole else None
    return {
        "cpu_seconds": sum(spent),
        "of_float": sum(spent) / once if once else None,
        "tier": Tier.MEASURED.value,
    }


def rollback_state(store: Store, name: str | None) -> JSON:
    """The run that is put back if this one fails, and whether its files are whole; None where there is none."""
    if name is None:
        return None
    try:
        record = store.record(name)
    except HwoptError:
        return None
    chosen = {
        s
        for r in record["results"]
        if record["choice"].get(r["target"]) == r["candidate"]
        for s in r["details"]["steps"]
    }
    digests = {o["digest"] for s in record["steps"] if s["key"] in chosen for o in s["outputs"].values()}
    broken = sum(not store.whole(digest) for digest in digests)
    return {"run": record["run"], "files": len(digests), "broken": broken}


def _not_checked(results: list[dict[str, Any]]) -> list[JSON]:
    """What a reader might take for granted and was not done, each with its reason."""
    found: list[JSON] = []
    for result in results:
        place = f"{result['candidate']} on {result['target']}"
        if result["status"] != "ok":
            found.append(f"{place}: {result['reason']}")
            continue
        for name, reason in result["details"]["missing"].items():
            found.append(f"{name} of {place}: {reason}")
    return found


def environment() -> dict[str, Any]:
    """Versions and machine, without names of users, hosts or paths."""
    versions: dict[str, JSON] = {}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = hwopt.__version__ if name == "hwopt" else None
    for name in _READERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = host_profile()
    return {
        "python": platform.python_version(),
        "libraries": versions,
        "host": this_host.detect().to_json(),
        "host_profile": device.name if device else None,
    }
