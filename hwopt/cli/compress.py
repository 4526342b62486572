"""``hwopt prune | finetune | sparsify | auto``: compression steps on files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from hwopt.cli.console import F, progress
from hwopt.cli.single import common, finish, settings, target_option
from hwopt.config.profile import load
from hwopt.engine.single import Job, device, run_stage

_IMPORTANCE: Final = ["l1", "l2", "batch_norm", "taylor", "fisher", "hessian"]
_SCHEDULES: Final = ["one_shot", "iterative", "growing"]


def _files(command: F) -> F:
    """What every step of these takes."""
    for decorate in (
        click.option(
            "--source",
            type=click.Path(path_type=Path),
            help="The float model: the teacher, and what costs are of.",
        ),
        target_option,
        common,
        click.argument("checkpoint", type=click.Path(path_type=Path)),
        click.argument("profile", type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def _run(
    stage: str,
    given: dict[str, Any],
    profile: Path,
    checkpoint: Path,
    output: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    target: str,
    source: Path | None,
) -> None:
    job = Job(profile=load(profile, overrides), hardware=device(target), progress=progress(quiet))
    inputs = {"checkpoint": checkpoint, "source": source or checkpoint}
    facts = run_stage(stage, settings(stage, **given), job, inputs, {"checkpoint": output})
    finish(output, facts, as_json)


@click.command()
@_files
@click.option("--ratio", type=float, help="Share of the channels to remove, 0 to 1.")
@click.option("--macs", type=float, help="Share of the float model's multiply-accumulates to keep.")
@click.option("--latency", type=float, help="Share of its latency to keep, measured on the target.")
@click.option("--estimated", is_flag=True, default=None, help="Latency by the device's roofline.")
@click.option("--importance", type=click.Choice(_IMPORTANCE), help="What ranks channels; default: l2.")
@click.option(
    "--scope", type=click.Choice(["group", "network"]), help="Of --ratio: all alike, or the weakest."
)
@click.option("--schedule", type=click.Choice(_SCHEDULES), help="At once, or with training.")
@click.option("--sensitivity", is_flag=True, default=None, help="Also cut every group alone; see --json.")
def prune(
    ratio: float | None,
    macs: float | None,
    latency: float | None,
    estimated: bool | None,
    importance: str | None,
    scope: str | None,
    schedule: str | None,
    sensitivity: bool | None,
    **files: Any,
) -> None:
    """Remove channels of CHECKPOINT to a goal; widths are rounded to what the device likes."""
    given = {
        "ratio": ratio,
        "macs": macs,
        "latency": latency,
        "estimated": estimated,
        "importance": importance,
        "scope": scope,
        "schedule": schedule,
        "sensitivity": sensitivity,
    }
    _run("prune", given, **files)


@click.command()
@_files
@click.option("--epochs", type=int, help="Default: 2.")
def finetune(epochs: int | None, **files: Any) -> None:
    """Train CHECKPOINT further, from labels and from --source as the teacher."""
    _run("finetune", {"epochs": epochs}, **files)


@click.command()
@_files
@click.option("--sparsity", type=float, help="Share of the weights that become zero.")
@click.option("--pattern", metavar="N:M", help="Of M neighbouring input channels N stay, for example 2:4.")
@click.option("--epochs", type=int, help="Default: 2.")
def sparsify(sparsity: float | None, pattern: str | None, epochs: int | None, **files: Any) -> None:
    """Set weights of CHECKPOINT to zero while training; shapes, and mostly time, stay."""
    _run("sparsify", {"sparsity": sparsity, "pattern": pattern, "epochs": epochs}, **files)


@click.command()
@_files
@click.option("--accuracy-drop", type=float, help="Fastest version that loses no more, for example 0.005.")
@click.option("--latency", type=float, help="Most accurate within this share of the float latency.")
@click.option("--cost", type=float, help="Training it may take, in trainings of the float model; default: 3.")
def auto(accuracy_drop: float | None, latency: float | None, cost: float | None, **files: Any) -> None:
    """Decide width, layers and precision of CHECKPOINT by measuring on the target."""
    _run("auto", {"accuracy_drop": accuracy_drop, "latency": latency, "cost": cost}, **files)
