"""A pipeline of a few seconds, and how to run it in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hwopt.store.events import read_events

PROFILE = """\
name: small
data: {name: digits}
model: {name: mlp, hidden: [16]}
train: {epochs: 1}
candidates:
  fp32: []
  int8: [{quantize: {method: ptq}}]
targets: [zcu104]
"""
COMMAND = [
    sys.executable,
    "-c",
    "from hwopt.cli.main import main; main()",
    "pipeline",
    "run",
    "p.yaml",
    "--json",
]


def write(folder: Path, text: str = PROFILE) -> None:
    (folder / "p.yaml").write_text(text)


def start(folder: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *more], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def run(folder: Path, *more: str, **environment: str) -> tuple[int, dict[str, Any] | None, str]:
    """Exit code, record, and what was said."""
    process = start(folder, *more, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, json.loads(out) if out.strip() else None, err


def steps_begun(folder: Path) -> list[list[str]]:
    """Labels of the steps that each run began, oldest run first."""
    runs = sorted((folder / ".hwopt").glob("runs/*/events.jsonl"))
    return [[e["label"] for e in read_events(one) if e["event"] == "step begins"] for one in runs] or [[]]


def finished(folder: Path) -> dict[str, dict[str, str]]:
    """Label to digests of each finished step, as the store has it."""
    found = {}
    for path in (folder / ".hwopt" / "steps").glob("*.json"):
        entry = json.loads(path.read_text())
        found[entry["label"]] = {port: o["digest"] for port, o in entry["outputs"].items()}
    return found


def nothing_torn(folder: Path) -> None:
    """Every visible file of the store is whole."""
    store = folder / ".hwopt"
    for path in [*store.glob("steps/*.json"), *store.glob("runs/*/record.json")]:
        json.loads(path.read_text())
