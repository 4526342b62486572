"""``hwopt export``, and what the verbs of single stages share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hwopt.cli.console import F, json_option, print_json, progress, quiet_option
from hwopt.config.profile import load
from hwopt.core.canonical import JSON
from hwopt.core.profile import HOST_CPU
from hwopt.core.settings import Settings
from hwopt.engine.single import Job, run_stage
from hwopt.errors import ConfigError
from hwopt.plugins import resolve


def common(command: F) -> F:
    """Options of every command that writes a file."""
    for decorate in (
        quiet_option,
        json_option,
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write."
        ),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile."
        ),
    ):
        command = decorate(command)
    return command


_profile = click.argument("profile", type=click.Path(path_type=Path))
_checkpoint = click.argument("checkpoint", type=click.Path(path_type=Path))
target_option = click.option(
    "--target", default=HOST_CPU, show_default=True, help="Device, or path of its YAML file."
)


def settings(stage: str, **given: object) -> Settings:
    """Settings from options; those not given keep their defaults."""
    model: type[Settings] = resolve("stage", stage).config
    try:
        return model.model_validate({name: value for name, value in given.items() if value is not None})
    except ValueError as error:  # pydantic's ValidationError is one
        details: Any = getattr(error, "errors", list)()
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, d['loc'])) or stage}: {d['msg']}" for d in details) or str(error),
            fix=next(
                (str(d["ctx"]["fix"]) for d in details if "fix" in d.get("ctx", {})),
                f"give another value; `hwopt {stage} --help` says what it means",
            ),
        ) from None


def finish(output: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    """Say what was written, as text or as JSON."""
    if as_json:
        document: dict[str, JSON] = {"schema_version": 1, "output": str(output), "facts": dict(facts)}
        print_json(document)
    else:
        click.echo(f"written: {output} ({output.stat().st_size:,} bytes)")


@click.command()
@_profile
@_checkpoint
@common
def export(
    profile: Path, checkpoint: Path, output: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Write CHECKPOINT as ONNX, and prove on the test split that it computes the same."""
    job = Job(profile=load(profile, overrides), hardware=None, progress=progress(quiet))
    facts = run_stage("export", settings("export"), job, {"checkpoint": checkpoint}, {"model": output})
    finish(output, facts, as_json)
