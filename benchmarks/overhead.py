"""What the pipeline costs over the bare calls of its stages.

    python -m benchmarks.overhead pipelines/digits.yaml --rounds 2

Both do the same steps from nothing, each in a process of its own: once through worker, store, record and report, once by
calling stage after stage, files handed on in temporary folders. Rounds take turns; the ratio is what counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from hwopt.config.profile import load
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import digest_of_file
from hwopt.core.profile import PipelineProfile
from hwopt.core.progress import silent
from hwopt.core.stage import StageSpec
from hwopt.engine.perform import Done, Task, perform
from hwopt.engine.pipeline import run
from hwopt.engine.prepare import prepare
from hwopt.plugins import resolve
from hwopt.report.render import render
from hwopt.store.store import Store


def bare(profile: PipelineProfile, folder: Path) -> None:
    """Every stage in order, in this process."""
    prepared = prepare(profile)
    done: dict[str, tuple[StageSpec, Done]] = {}
    for number, step in enumerate(prepared.plan.steps):
        work = folder / str(number)
        work.mkdir()
        inputs = {}
        for port, source in step.inputs.items():
            spec, made = done[source.step]
            path = made.result.files[source.port]
            size = path.stat().st_size
            inputs[port] = Artifact(
                kind=spec.produces[source.port], digest=digest_of_file(path), bytes=size, path=path
            )
        facts = done[step.inputs["source"].step][1].result.facts if "source" in step.inputs else {}
        task = Task(
            stage=step.stage, label=step.label, title="", config=step.config, hardware=step.hardware, inputs=inputs,
            seed=profile.seed, threads=prepared.threads, model=profile.model.to_json(), data=profile.data,
            data_where=profile.data_where, root=prepared.import_root, workdir=work, source_facts=facts,
        )  # fmt: skip
        done[step.key] = (resolve("stage", step.stage), perform(task, silent, prepared.data))


def piped(profile: PipelineProfile, folder: Path) -> None:
    """The same as `hwopt pipeline run`, with its reports."""
    _, record = run(profile, Store(folder / "store"), silent)
    for form in ("html", "md"):
        (folder / form).write_text(render(record, form))


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--rounds", default=2, show_default=True)
@click.option("--only", type=click.Choice(["bare", "pipeline"]), help="Do one of the two, in this process.")
def main(path: Path, rounds: int, only: str | None) -> None:
    """Measure."""
    if only is not None:
        with tempfile.TemporaryDirectory() as folder:
            (bare if only == "bare" else piped)(load(path), Path(folder))
        return
    seconds: dict[str, list[float]] = {"bare": [], "pipeline": []}
    for number in range(rounds):
        for name in ("bare", "pipeline") if number % 2 == 0 else ("pipeline", "bare"):
            start = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "benchmarks.overhead", str(path), "--only", name], check=True
            )
            seconds[name].append(time.monotonic() - start)
            click.echo(f"{name}: {seconds[name][-1]:.1f} s")
    total = {name: sum(times) for name, times in seconds.items()}
    click.echo(f"pipeline over bare calls: {total['pipeline'] / total['bare']:.3f}")


if __name__ == "__main__":
    main()
