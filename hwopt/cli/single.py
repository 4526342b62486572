"""``hwopt train | prune | quantize | export``: single stages on files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hwopt.cli.console import F, json_option, print_json, progress, quiet_option
from hwopt.config.profile import load
from hwopt.core.canonical import JSON
from hwopt.core.profile import HOST_CPU
from hwopt.core.settings import Settings
from hwopt.engine.single import Job, device, run_stage
from hwopt.errors import ConfigError
from hwopt.plugins import resolve


def _common(command: F) -> F:
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
_target = click.option(
    "--target", default=HOST_CPU, show_default=True, help="Device, or path of its YAML file."
)


def _settings(stage: str, **given: object) -> Settings:
    """Settings from options; those not given keep their defaults."""
    model: type[Settings] = resolve("stage", stage).config
    try:
        return model.model_validate({name: value for name, value in given.items() if value is not None})
    except ValueError as error:  # pydantic's ValidationError is one
        details: Any = getattr(error, "errors", list)()
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, d['loc'])) or stage}: {d['msg']}" for d in details) or str(error),
            fix=next((str(d["ctx"]["fix"]) for d in details if "fix" in d.get("ctx", {})), None),
        ) from None


def _finish(output: Path, facts: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        document: dict[str, JSON] = {"schema_version": 1, "output": str(output), "facts": dict(facts)}
        print_json(document)
    else:
        click.echo(f"written: {output} ({output.stat().st_size:,} bytes)")


@click.command()
@_profile
@_common
def train(profile: Path, output: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Train the model of PROFILE and write a checkpoint (safetensors)."""
    loaded = load(profile, overrides)
    job = Job(profile=loaded, hardware=None, progress=progress(quiet))
    facts = run_stage("train", loaded.train.config, job, {}, {"checkpoint": output})
    _finish(output, facts, as_json)


@click.command()
@_profile
@_checkpoint
@_common
@_target
@click.option("--ratio", type=float, required=True, help="Share of the channels to remove, 0 to 1.")
def prune(
    profile: Path,
    checkpoint: Path,
    output: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    target: str,
    ratio: float,
) -> None:
    """Remove channels of CHECKPOINT; widths are rounded to what the device likes."""
    job = Job(profile=load(profile, overrides), hardware=device(target), progress=progress(quiet))
    facts = run_stage(
        "prune", _settings("prune", ratio=ratio), job, {"checkpoint": checkpoint}, {"checkpoint": output}
    )
    _finish(output, facts, as_json)


@click.command()
@_profile
@_checkpoint
@_common
@_target
@click.option("--method", type=click.Choice(["ptq", "qat"]), default="ptq", show_default=True)
@click.option("--weights", help="Integer type, for example int4; default: the device's.")
@click.option("--activations", help="Integer type; default: the device's.")
@click.option("--epochs", type=int, help="Epochs of qat.")
@click.option("--calibration-samples", type=int)
@click.option("--explain", is_flag=True, help="Print the decision for every tensor, and the rule behind it.")
def quantize(
    profile: Path,
    checkpoint: Path,
    output: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    target: str,
    method: str,
    weights: str | None,
    activations: str | None,
    epochs: int | None,
    calibration_samples: int | None,
    explain: bool,
) -> None:
    """Quantize CHECKPOINT under the scheme of a device."""
    job = Job(profile=load(profile, overrides), hardware=device(target), progress=progress(quiet))
    config = _settings(
        "quantize",
        method=method,
        weights=weights,
        activations=activations,
        epochs=epochs,
        calibration_samples=calibration_samples,
    )
    if output.is_dir() or not output.name:
        raise ConfigError(f"{output} is a folder", where="-o", fix="give the name of a file")
    decisions = output.with_name(output.stem + ".decisions.json")
    facts = run_stage(
        "quantize", config, job, {"checkpoint": checkpoint}, {"checkpoint": output, "decisions": decisions}
    )
    if explain and not as_json:
        click.echo(_explained(json.loads(decisions.read_text())))
    _finish(output, {**facts, "decisions": json.loads(decisions.read_text())}, as_json)


def _explained(decisions: list[dict[str, Any]]) -> str:
    lines = []
    for d in decisions:
        grid = "float" if d["dtype"] is None else f"{d['dtype']} {d['codes']} per {d['granularity']}"
        if d["dtype"] == "int32":
            grid = "int32"
        lines.append(f"{d['tensor']:32s} {d['role']:10s} {grid:28s} {d['rule']}")
    return "\n".join(lines)


@click.command()
@_profile
@_checkpoint
@_common
def export(
    profile: Path, checkpoint: Path, output: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Write CHECKPOINT as ONNX, and prove on the test split that it computes the same."""
    job = Job(profile=load(profile, overrides), hardware=None, progress=progress(quiet))
    facts = run_stage("export", _settings("export"), job, {"checkpoint": checkpoint}, {"model": output})
    _finish(output, facts, as_json)
