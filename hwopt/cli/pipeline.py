"""``hwopt pipeline run | plan | validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwopt.cli.console import (
    OUT_OF_TIME,
    STAGE_FAILED,
    VERDICT_CODES,
    json_option,
    print_json,
    progress,
    quiet_option,
    store_option,
)
from hwopt.config.profile import load
from hwopt.core.canonical import JSON
from hwopt.engine import pipeline as engine
from hwopt.engine.pipeline import Fresh, Wish
from hwopt.engine.prepare import prepare
from hwopt.engine.steps import explain as explain_steps
from hwopt.engine.steps import finished_keys
from hwopt.report.render import render
from hwopt.report.rows import sentence
from hwopt.report.text import terminal
from hwopt.store.atomic import write_text
from hwopt.store.store import Store

_profile = click.argument("profile", type=click.Path(path_type=Path))
_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile, a.b=value."
)


@click.group()
def pipeline() -> None:
    """Run, plan or validate a pipeline profile."""


@pipeline.command()
@_profile
@_set
@store_option
@json_option
@quiet_option
@click.option("--fresh", is_flag=True, help="Do finished steps again.")
@click.option("--remeasure", is_flag=True, help="Measure again; trained and exported models are kept.")
@click.option("--from", "start", metavar="STEP", help="Do this step and all that follow from it again.")
@click.option(
    "--until", metavar="STEP", help="End after this step: a stage, a candidate, or a label of the plan."
)
@click.option(
    "--time-budget",
    "seconds",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="End then with exit code 8; finished steps are kept.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Steps at a time; measured ones run alone.",
)
@click.option("--no-isolation", is_flag=True, help="Run stages in this process, for debuggers.")
@click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait for another run in the same store.",
)
@click.option("--inconclusive-ok", is_flag=True, help="Exit 0, not 3, when the verdict is INCONCLUSIVE.")
@click.option("--verdict-ok", is_flag=True, help="Exit 0 whatever the verdict: a gate that follows decides.")
def run(
    profile: Path,
    overrides: tuple[str, ...],
    store: Path,
    as_json: bool,
    quiet: bool,
    fresh: bool,
    remeasure: bool,
    no_isolation: bool,
    lock_timeout: float,
    inconclusive_ok: bool,
    verdict_ok: bool,
    **wishes: Any,
) -> int:
    """Train, compress, export, measure, record and report. Finished steps are not done again."""
    place = Store(store)
    again = Fresh.EVERYTHING if fresh else Fresh.MEASUREMENTS if remeasure else Fresh.NOTHING

    def report(run_id: str, record: dict[str, Any]) -> None:
        for form in ("html", "md"):
            write_text(place.run_folder(run_id) / f"report.{form}", render(record, form))

    run_id, record = engine.run(
        load(profile, overrides),
        place,
        progress(quiet),
        Wish(fresh=again, isolated=not no_isolation, **wishes),
        lock_timeout=lock_timeout,
        on_record=report,
    )
    if as_json:
        print_json(record)
    else:
        click.echo(terminal(record))
        click.echo(f"\n{sentence(record)}")
        click.echo(f"{record['readiness']['verdict']}: {record['readiness']['why']}")
        click.echo(f"report:  {place.run_folder(run_id) / 'report.html'}")
    return _exit_code(record, inconclusive_ok, verdict_ok)


def _exit_code(record: dict[str, Any], inconclusive_ok: bool, verdict_ok: bool) -> int:
    """A failed step is never hidden behind another version's PASS."""
    if any(r["status"] == "failed" for r in record["results"]):
        return STAGE_FAILED
    if record["status"] == "budget":
        click.echo("the time budget was over; the same command goes on from here", err=True)
        return OUT_OF_TIME
    if record["status"] == "until" or verdict_ok:
        return 0  # what was asked for is done, and nothing was to be judged
    if record["verdict"] == "INCONCLUSIVE" and inconclusive_ok:
        click.echo("warning: the verdict is INCONCLUSIVE; exit code 0 was asked for", err=True)
        return 0
    return VERDICT_CODES[str(record["verdict"])]


@pipeline.command()
@_profile
@_set
@store_option
@json_option
@click.option(
    "--explain", metavar="STEP", help="Why a step would run again: a stage, a candidate, or a label."
)
def plan(profile: Path, overrides: tuple[str, ...], store: Path, as_json: bool, explain: str | None) -> None:
    """Print the steps, what is finished, and what each row needs. Changes nothing."""
    prepared = prepare(load(profile, overrides))
    if explain is not None:
        found = explain_steps(prepared.plan, Store(store), explain)
        if as_json:
            print_json({"schema_version": 1, "steps": list[JSON](found)})
            return
        for one in found:
            click.echo(f"{one['label']}: {one['state']}")
            for reason in one["reasons"]:
                click.echo(f"    {reason}")
        return
    finished = finished_keys(prepared.plan, Store(store))
    steps = {step.key: index for index, step in enumerate(prepared.plan.steps, 1)}
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "steps": [
                    {
                        "key": step.key,
                        "stage": step.stage,
                        "label": step.label,
                        "inputs": [source.step for source in step.inputs.values()],
                        "finished": step.key in finished,
                    }
                    for step in prepared.plan.steps
                ],
                "rows": [
                    {
                        "candidate": row.candidate,
                        "target": row.target,
                        "steps": list(row.steps),
                        "unavailable": row.unavailable,
                        "fix": row.fix,
                    }
                    for row in prepared.plan.rows
                ],
            }
        )
        return
    for step in prepared.plan.steps:
        after = sorted({steps[source.step] for source in step.inputs.values()})
        mark = "done" if step.key in finished else "to do"
        label = step.label + (f" ({step.hardware.name})" if step.hardware else "")
        click.echo(
            f"{steps[step.key]:3d}  {mark:5s}  {label}"
            + (f"  after {', '.join(map(str, after))}" if after else "")
        )
    for row in prepared.plan.rows:
        if row.unavailable:
            click.echo(f"  –  {row.candidate} on {row.target}: {row.unavailable}")
    click.echo(
        f"{len(steps)} steps, {len(steps) - len(finished)} to do{_effort(prepared, finished, Store(store))}"
    )


def _effort(prepared: Any, finished: set[str], store: Store) -> str:
    """Time and space that the steps to do took the last time, where all of them were done before."""
    entries = [store.step_entry(step.key) for step in prepared.plan.steps if step.key not in finished]
    known = [entry for entry in entries if entry is not None]
    if not known or len(known) < len(entries):
        return ""
    seconds = sum(float(entry["seconds"]) for entry in known)
    size = sum(int(o["bytes"]) for entry in known for o in entry["outputs"].values())
    return f": about {seconds:.0f} s and {size / 1e6:.0f} MB, as the last time"


@pipeline.command()
@_profile
@_set
@json_option
def validate(profile: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check the profile, its data and its targets; every problem at once. Runs nothing."""
    prepared = prepare(load(profile, overrides))
    dataset = prepared.data()
    facts: dict[str, Any] = {
        "schema_version": 1,
        "valid": True,
        "name": prepared.profile.name,
        "candidates": [c.name for c in prepared.profile.candidates],
        "targets": [t.name for t in prepared.profile.targets],
        "train_samples": len(dataset.x_train),
        "test_samples": len(dataset.x_test),
        "classes": dataset.classes,
        "sample_shape": list(dataset.sample_shape),
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(
            f"{profile}: valid; {len(prepared.profile.candidates)} candidates, "
            f"{len(prepared.profile.targets)} targets, {facts['train_samples']} training and "
            f"{facts['test_samples']} test samples of shape {facts['sample_shape']}, "
            f"{facts['classes']} classes"
        )
