"""``hwopt train``: one training, races between trainings, and questions before one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hwopt.cli.console import json_option, print_json, progress, quiet_option
from hwopt.cli.single import common, finish
from hwopt.config.profile import load
from hwopt.engine import training as engine
from hwopt.errors import ConfigError
from hwopt.plugins import did_you_mean
from hwopt.report.curve import curves, standalone
from hwopt.report.text import columns
from hwopt.store.atomic import write_text

_overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile."
)
_profile = click.argument("profile", type=click.Path(path_type=Path))
_plot = click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write an SVG picture.")


class _RunByDefault(click.Group):
    """``hwopt train PROFILE`` is short for ``hwopt train run PROFILE``."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The first word, if it is no command, is a profile."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            if "." not in args[0] and not Path(args[0]).exists():
                raise click.UsageError(
                    f"no such command or profile {args[0]!r}: {did_you_mean(args[0], self.commands)}"
                )
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options before the profile belong to run."""
        if args and args[0].startswith("-") and args[0] not in {"-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def train() -> None:
    """Train the model of a profile; compare trainings; ask before training.

    `hwopt train PROFILE -o FILE` is short for `hwopt train run PROFILE -o FILE`.
    """


@train.command()
@_profile
@common
def run(profile: Path, output: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Train the model of PROFILE and write a checkpoint (safetensors).

    A training that was killed goes on from its last snapshot, which lies beside the output. Under torchrun all
    processes train together; such a training starts again.
    """
    facts = engine.train(load(profile, overrides), output, progress(quiet))
    if facts is not None:
        finish(output, facts, as_json)


@train.command()
@_profile
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the result as JSON."
)
@_overrides
@json_option
@quiet_option
def compare(
    profile: Path, output: Path | None, overrides: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Race the entrants of PROFILE's section `compare`.

    All get the same tuning budget and the same seeds. A race that was killed goes on: finished trainings are kept
    beside the output.
    """
    loaded = load(profile, overrides)
    result = engine.compare(loaded, output, progress(quiet))
    if as_json:
        print_json(result)
        return
    for line in columns(engine.race_table(result)):
        click.echo(line)
    click.echo(
        f"target: {result['target_accuracy']:.1%} on the validation split; brackets: least and greatest of the seeds, "
        f"which hold the median with {result['coverage']:.1%}; measured, {result['threads']} threads"
    )


@train.command()
@_profile
@_plot
@_overrides
@json_option
def schedule(profile: Path, plot: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show how the learning rate of PROFILE's training moves, with no network and no step.

    What depends on validation losses (plateau) is drawn as if they never improved.
    """
    rates = engine.schedule_of(load(profile, overrides))
    if plot is not None:
        write_text(plot, standalone(curves({"lr": rates}, "step", "learning rate"), "learning rate"))
    if as_json:
        print_json({"schema_version": 1, "rates": [[step, rate] for step, rate in rates]})
        return
    for line in engine.drawn(rates):
        click.echo(line)
    if plot is not None:
        click.echo(f"written: {plot}")


@train.command()
@_profile
@click.option(
    "--memory",
    type=click.FloatRange(1),
    default=2000.0,
    show_default=True,
    help="MB that the batch probe may take.",
)
@_overrides
@json_option
@quiet_option
def probe(profile: Path, memory: float, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Ask before training: does one batch fit, which learning rate, which batch, how noisy is the gradient.

    Everything runs on copies. Exit code 1 where something is wrong.
    """
    found = engine.probe(load(profile, overrides), int(memory * 1e6), progress(quiet))
    if as_json:
        print_json(found)
    else:
        for line in found["text"]:
            click.echo(line)
    return 1 if found["preflight"]["problems"] else 0


@train.command()
@_profile
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--grid", is_flag=True, help="Also a square of 21 × 21 places.")
@_plot
@_overrides
@json_option
@quiet_option
def surface(
    profile: Path,
    checkpoint: Path,
    grid: bool,
    plot: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """The loss around the weights of CHECKPOINT: a random direction, the way to int8, the sharpest curvature."""
    if not checkpoint.is_file():
        raise ConfigError("no such file", where=str(checkpoint))
    found = engine.surface(load(profile, overrides), checkpoint, progress(quiet), square=grid)
    if plot is not None:
        lines = {s["name"]: list(zip(s["places"], s["losses"], strict=True)) for s in found["slices"]}
        write_text(plot, standalone(curves(lines, "place", "loss"), "loss surface"))
    if as_json:
        print_json(found)
        return
    for line in found["text"]:
        click.echo(line)
    if plot is not None:
        click.echo(f"written: {plot}")
