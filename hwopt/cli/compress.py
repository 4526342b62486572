"""``hwopt prune | finetune | sparsify | auto``: compression steps on files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from hwopt.cli.console import VERDICT_CODES, F, progress
from hwopt.cli.single import common, finish, settings, target_option
from hwopt.config.profile import load
from hwopt.engine.judge import goals_of, worst
from hwopt.engine.single import Job, device, run_stage
from hwopt.errors import ConfigError
from hwopt.planning.planner import choosing_problems
from hwopt.plugins import resolve

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
) -> int:
    say = progress(quiet)
    job = Job(profile=load(profile, overrides), hardware=device(target), progress=say)
    config: Any = settings(stage, **given)
    held = float(getattr(job.profile.source.config, "validation_share", 1.0))
    if stage == "auto" and 0 < held < config.tune.validation_share:
        say(f"auto chooses on {held:g} of the training split, as much as train holds back")
        config = config.model_copy(update={"tune": config.tune.model_copy(update={"validation_share": held})})
    for text, fix in choosing_problems(resolve("stage", stage), config, held):
        raise ConfigError(text, where=str(profile), fix=fix)
    inputs = {"checkpoint": checkpoint}
    if source is not None:
        inputs["source"] = source
    elif stage in {"finetune", "sparsify"}:
        say("no --source is given: learning from labels alone")
        config = config.model_copy(update={"distill": None})
    else:
        inputs["source"] = checkpoint  # it is the float model itself
    facts = run_stage(stage, config, job, inputs, {"checkpoint": output})
    finish(output, facts, as_json)
    goals = [facts["pruning_goal"]] if "pruning_goal" in facts else []
    judged = goals_of({"status": "ok", "details": {**facts, "pruning_goals": goals}})
    for goal in judged:
        say(f"{goal.verdict.value}: {goal.requirement}: {goal.reason}")
    return VERDICT_CODES[worst([goal.verdict for goal in judged]).value]


@click.command()
@_files
@click.option("--ratio", type=float, help="Share of the channels to remove, 0 to 1.")
@click.option("--macs", type=float, help="Share of the float model's multiply-accumulates to keep.")
@click.option("--latency", type=float, help="Share of its latency to keep, measured on the target.")
@click.option(
    "--estimated", is_flag=True, default=None, help="Latency by the device's roofline, or of its design."
)
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
) -> int:
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
    return _run("prune", given, **files)


@click.command()
@_files
@click.option("--epochs", type=int, help="Default: 2.")
def finetune(epochs: int | None, **files: Any) -> int:
    """Train CHECKPOINT further, from labels and from --source as the teacher."""
    return _run("finetune", {"epochs": epochs}, **files)


@click.command()
@_files
@click.option("--sparsity", type=float, help="Share of the weights that become zero.")
@click.option("--pattern", metavar="N:M", help="Of M neighbouring input channels N stay, for example 2:4.")
@click.option("--epochs", type=int, help="Default: 2.")
def sparsify(sparsity: float | None, pattern: str | None, epochs: int | None, **files: Any) -> int:
    """Set weights of CHECKPOINT to zero while training; shapes, and mostly time, stay."""
    return _run("sparsify", {"sparsity": sparsity, "pattern": pattern, "epochs": epochs}, **files)


@click.command()
@_files
@click.option("--accuracy-drop", type=float, help="Fastest version that loses no more, for example 0.005.")
@click.option("--latency", type=float, help="Most accurate within this share of the float latency.")
@click.option("--cost", type=float, help="Training it may take, in trainings of the float model; default: 3.")
def auto(accuracy_drop: float | None, latency: float | None, cost: float | None, **files: Any) -> int:
    """Decide width, layers and precision of CHECKPOINT by measuring on the target."""
    return _run("auto", {"accuracy_drop": accuracy_drop, "latency": latency, "cost": cost}, **files)
