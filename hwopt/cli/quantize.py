"""``hwopt quantize``: a checkpoint of a profile, or a float ONNX model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

import hwopt
from hwopt.cli.console import progress
from hwopt.cli.single import common, finish, settings, target_option
from hwopt.config.profile import load
from hwopt.engine.single import Job, device, run_stage
from hwopt.errors import ConfigError

_METHODS: Final = ["ptq", "qat", "dynamic", "weight_only"]


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@common
@target_option
@click.option("--method", type=click.Choice(_METHODS), default="ptq", show_default=True)
@click.option("--weights", help="Integer type, for example int4; default: the device's.")
@click.option("--activations", help="Integer type; default: the device's.")
@click.option("--block", type=int, help="Input channels that share a scale; weight_only.")
@click.option(
    "--observer", help="mse, min_max, moving_average, percentile or entropy; default: what fits best."
)
@click.option("--smooth", type=float, help="SmoothQuant's alpha, 0 to 1.")
@click.option(
    "--adaround", type=int, metavar="N", help="Learn the rounding of weights, N iterations a layer."
)
@click.option("--keep-float", multiple=True, metavar="PATTERN", help="Layers to leave in float.")
@click.option(
    "--raise-layers", type=float, metavar="SHARE", help="Mixed precision: share of layers to raise."
)
@click.option("--raise-to", help="What raised layers get: a type, or float; default: int8.")
@click.option(
    "--latency", type=float, metavar="FACTOR", help="Raise within this multiple of the integer time."
)
@click.option("--epochs", type=int, help="Epochs of qat.")
@click.option("--calibration-samples", type=int)
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="npz with an array for each input; ONNX."
)
@click.option(
    "--fix", "fixed", multiple=True, metavar="INPUT=VALUE", help="An input that never changes; ONNX."
)
@click.option("--explain", is_flag=True, help="Print the decision for every tensor, and the rule behind it.")
def quantize(
    sources: tuple[Path, ...],
    output: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    target: str,
    method: str,
    weights: str | None,
    activations: str | None,
    block: int | None,
    observer: str | None,
    smooth: float | None,
    adaround: int | None,
    keep_float: tuple[str, ...],
    raise_layers: float | None,
    raise_to: str | None,
    latency: float | None,
    epochs: int | None,
    calibration_samples: int | None,
    calibration: Path | None,
    fixed: tuple[str, ...],
    explain: bool,
) -> None:
    """Quantize under the scheme of a device: PROFILE CHECKPOINT, or a float MODEL.onnx by itself."""
    if raise_to is not None and raise_layers is None and latency is None:
        raise ConfigError(
            "--raise-to raises nothing", where="--raise-to", fix="say how many: --raise-layers 0.2"
        )
    mixed = None
    if raise_layers is not None or latency is not None:
        given = "float" if latency is not None else "int8"
        mixed = {"layers": raise_layers, "latency": latency, "raise_to": raise_to or given}
    config: Any = settings(
        "quantize",
        method=method,
        weights=weights,
        activations=activations,
        block=block,
        observer=observer,
        smooth=smooth,
        adaround=None if adaround is None else {"iterations": adaround},
        rules=tuple({"layers": p, "keep_float": True} for p in keep_float) or None,
        mixed=mixed,
        epochs=epochs,
        calibration_samples=calibration_samples,
    )
    if output.is_dir() or not output.name:
        raise ConfigError(f"{output} is a folder", where="-o", fix="give the name of a file")
    if len(sources) == 1:
        if overrides:
            raise ConfigError("--set changes a profile, and there is none", where="--set", fix="leave it out")
        facts = hwopt.quantize_onnx(
            sources[0],
            output,
            hardware=target,
            calibration=calibration,
            config=config,
            fix=dict(fixed_input(text) for text in fixed),
            progress=progress(quiet),
        )
        _show(output, facts, as_json=as_json, explain=explain)
        return
    if len(sources) != 2:
        raise ConfigError(f"{len(sources)} files", fix="give PROFILE CHECKPOINT, or one MODEL.onnx")
    if calibration is not None or fixed:
        raise ConfigError("--calibration and --fix are for an ONNX model by itself", fix="remove them")
    profile, checkpoint = sources
    job = Job(profile=load(profile, overrides), hardware=device(target), progress=progress(quiet))
    decisions = output.with_name(output.stem + ".decisions.json")
    made = run_stage(
        "quantize", config, job, {"checkpoint": checkpoint}, {"checkpoint": output, "decisions": decisions}
    )
    table = json.loads(decisions.read_text())
    _show(output, {**made, "decisions": table}, as_json=as_json, explain=explain)


def fixed_input(text: str) -> tuple[str, float]:
    """``NAME=NUMBER`` of ``--fix``."""
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        equals = ""
        number = 0.0
    if not equals or not name:
        raise ConfigError(f"{text!r} fixes no input", where="--fix", fix="write --fix NAME=NUMBER")
    return name, number


def _show(output: Path, facts: dict[str, Any], *, as_json: bool, explain: bool) -> None:
    if explain and not as_json:
        click.echo(_explained(facts["decisions"]))
    finish(output, facts, as_json)


def _explained(decisions: list[dict[str, Any]]) -> str:
    lines = []
    for d in decisions:
        grid = "float" if d["dtype"] is None else f"{d['dtype']} {d['codes']} per {d['granularity']}"
        if d["dtype"] == "int32":
            grid = "int32"
        lines.append(f"{d['tensor']:32s} {d['role']:10s} {grid:28s} {d['rule']}")
    return "\n".join(lines)
