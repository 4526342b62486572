"""Kill a pipeline at every named place of every step, resume, and compare what is left with an undisturbed run.

    python -m benchmarks.kills pipelines/digits.yaml

One store takes all the kills: each run may finish about one step and is killed (SIGKILL) in the next, at one place after the
other, so that every step is cut off; then at the places of the worker and of the run as a whole. For each kill it is checked that no finished step was lost or begun again, and that every visible file is whole; at the end that all
files that do not depend on the day are those of the undisturbed run, byte for byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from hwopt.core.crossings import NAMES, VARIABLE
from hwopt.store.events import read_events

_COMMAND = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "pipeline", "run"]
# The second time that a run passes these, the ninth write: one step is done, and another is on its way.
_PLACES = (
    "step.begun:2",
    "step.worked:2",
    "step.stored:2",
    "step.committed:1",
    "write.temporary:9",
    "write.synced:9",
    "write.renamed:9",
)
_MEASURED = ("benchmark", "evaluate", "inspect", "estimate")


def finished(store: Path) -> dict[str, dict[str, str]]:
    """Label and key to digests of the finished steps."""
    found = {}
    for path in store.glob("steps/*.json"):
        entry = json.loads(path.read_text())
        found[f"{entry['label']} {entry['key'][-8:]}"] = {p: o["digest"] for p, o in entry["outputs"].items()}
    return found


def begun(store: Path) -> list[list[str]]:
    """Labels and keys of the steps that each run began."""
    logs = sorted(store.glob("runs/*/events.jsonl"))
    return [
        [f"{e['label']} {e['key'][-8:]}" for e in read_events(p) if e["event"] == "step begins"] for p in logs
    ]


def run(profile: Path, store: Path, **environment: str) -> int:
    """Exit code of a run."""
    said = subprocess.run(
        [*_COMMAND, str(profile), "--store", str(store), "-q"], env={**os.environ, **environment},
        capture_output=True, check=False,
    )  # fmt: skip
    return said.returncode


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
def main(profile: Path) -> None:
    """Kill and resume."""
    with tempfile.TemporaryDirectory() as name:
        calm, store = Path(name) / "calm", Path(name) / "killed"
        run(profile, calm)
        wanted = finished(calm)
        others = [n for n in NAMES if not n.startswith(("step.", "write."))]
        kills = lost = repeated = survived = 0
        while True:
            before, logs = finished(store), len(begun(store))
            place = _PLACES[kills % len(_PLACES)] if kills else "step.worked:1"
            code = run(profile, store, **{VARIABLE: place})
            kills += 1
            for path in [*store.glob("steps/*.json"), *store.glob("runs/*/record.json")]:
                json.loads(path.read_text())
            after = finished(store)
            lost += not before.items() <= after.items()
            if len(begun(store)) > logs:
                repeated += bool(set(begun(store)[-1]) & before.keys())
            survived += code >= 0
            click.echo(f"{kills:3d}  {place:16s} exit {code:4d}  {len(after)} of {len(wanted)} steps")
            if len(after) == len(wanted):
                break
        for place in others:  # the run as a whole, and the worker, whose death is a failed step
            kills += 1
            if place.startswith("stage."):
                for path in store.glob("steps/*.json"):
                    if json.loads(path.read_text())["label"] == "export slim":
                        path.unlink()
            code = run(profile, store, **{VARIABLE: place})
            click.echo(
                f"{kills:3d}  {place:16s} exit {code:4d}  {len(finished(store))} of {len(wanted)} steps"
            )
        code = run(profile, store)
        after = finished(store)
        same = [label for label in wanted if not label.startswith(_MEASURED)]
        other = [
            label
            for label in same
            if {p: d for p, d in after.get(label, {}).items() if p != "ledger"}
            != {p: d for p, d in wanted[label].items() if p != "ledger"}
        ]
        click.echo(
            f"{kills} kills: {lost} lost a finished step, {repeated} began one again; {len(same) - len(other)} of "
            f"{len(same)} files that do not depend on the day are those of the undisturbed run; exit {code} at the end"
        )
        sys.exit(1 if lost or repeated or other or code not in {0, 1, 3} else 0)


if __name__ == "__main__":
    main()
