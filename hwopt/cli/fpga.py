"""``hwopt fpga estimate | explore | emulate | prove | qonnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import hwopt
from hwopt.cli.console import json_option, print_json, progress, quiet_option
from hwopt.config.yaml_text import parse, read_text
from hwopt.errors import ConfigError

_LAYOUTS = ("streaming", "overlay", "unrolled")  # the last needs weights, and explore has none
_FLOWS = ("finn", "hls4ml")
_STAGE_FAILED = 5


@click.group()
def fpga() -> None:
    """What a model costs on an FPGA, and proof that the design computes it."""


target_option = click.option("--target", required=True, help="FPGA, or its YAML file.")
model_argument = click.argument("model", type=click.Path(path_type=Path))


def _bits(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    return None if value is None else _pair(value)


def _pair(text: str) -> tuple[int, int]:
    weights, colon, activations = text.partition(":")
    try:
        return int(weights), int(activations if colon else weights)
    except ValueError:
        raise click.BadParameter(f"{text!r}: write W:A, such as 4:8") from None


def _folding(path: Path | None) -> dict[str, dict[str, int]] | None:
    if path is None:
        return None
    value = parse(read_text(path), path).value
    fine = isinstance(value, dict) and all(
        isinstance(layer, str)
        and isinstance(fold, dict)
        and all(isinstance(key, str) and type(n) is int for key, n in fold.items())
        for layer, fold in value.items()
    )
    if not fine or not value:
        raise ConfigError(
            "a folding is a mapping of layers",
            where=str(path),
            fix="write LAYER: {pe: 4, simd: 8} or {reuse: 16}",
        )
    found: Any = value
    return dict[str, dict[str, int]](found)


def _wishes(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


layout_option = click.option("--layout", type=click.Choice(_LAYOUTS), default="streaming", show_default=True)
flow_option = click.option(
    "--flow", type=click.Choice(_FLOWS), default="finn", show_default=True, help="Whose rules units follow."
)
fps_option = click.option(
    "--fps", type=click.FloatRange(0, min_open=True), help="Frames a second, with the least resources."
)


@fpga.command()
@model_argument
@target_option
@layout_option
@flow_option
@fps_option
@click.option("--bits", callback=_bits, help="W:A bits that layers would have, instead of the file's.")
@click.option("--keep", type=float, default=1.0, show_default=True, help="Share of inner channels left.")
@click.option("--folding", type=click.Path(path_type=Path), help="YAML: pe and simd, or reuse, a layer.")
@click.option("--overlay", help="Overlay of the device; its first by default.")
@click.option("--cores", type=click.IntRange(1, 64), help="Of the overlay.")
@click.option("--clock-mhz", type=click.FloatRange(1, 2000))
@json_option
def estimate(
    model: Path,
    target: str,
    layout: str,
    flow: str,
    fps: float | None,
    bits: tuple[int, int] | None,
    keep: float,
    folding: Path | None,
    overlay: str | None,
    cores: int | None,
    clock_mhz: float | None,
    as_json: bool,
) -> None:
    """Cycles, resources, energy, fits or not; nothing is built.

    Without --fps the folding with the least latency that fits. Times and resources are estimates with the
    interval in which nine of ten published designs lie.
    """
    found = hwopt.fpga_estimate(
        model,
        target=target,
        bits=bits,
        keep=keep,
        **_wishes(
            layout=layout,
            flow=flow,
            frames_per_second=fps,
            folding=_folding(folding),
            overlay=overlay,
            cores=cores,
            clock_mhz=clock_mhz,
        ),
    )
    if as_json:
        print_json(found)
    else:
        _say(found)


def _say(found: dict[str, Any]) -> None:
    ms, name = found["latency_ms"], Path(found["model"]).name
    click.echo(
        f"{name} on {found['device']} ({found['part']}), {found['layout']}: {found['verdict']} (estimated)"
    )
    click.echo(
        f"  latency {_time(ms['p50'])} [{_time(ms['low'])}, {_time(ms['high'])}], "
        f"{found['frames_per_second']:,.0f} frames a second at {found['clock_mhz']:g} MHz"
    )
    for resource, need in found["resources"].items():
        share = need["high"] / need["usable"] if need["usable"] else float("inf")
        mark = "" if need["fits"] else "  ← short"
        band = "" if need["low"] == need["high"] else f" [{need['low']:,.0f}, {need['high']:,.0f}]"
        click.echo(
            f"  {resource:5s}{need['estimate']:>10,.0f}{band} of {need['usable']:,} usable "
            f"({min(share, 99):.0%} at the upper end){mark}"
        )
    for text in [*found["short"], *([found["missed"]] if found["missed"] else [])]:
        click.echo(f"  {text}")
    if found["not_judged"]:
        click.echo(f"  not judged, because no source confirms it: {', '.join(found['not_judged'])}")
    energy = found["energy"]
    if energy["uj"] is not None:
        click.echo(f"  energy {energy['uj']:,.1f} µJ a frame: {energy['basis']}")
    click.echo(
        f"  {found['cycles']:,} cycles for a frame, {found['interval_cycles']:,} between frames, "
        f"limited by {found['bottleneck']}"
    )
    search = found["search"]
    if search and search["next_step"]:
        step = search["next_step"]
        more = ", ".join(f"{step[n]:,} {n}" for n in found["resources"])
        fit = "" if step["fits"] else ", which does not fit"
        click.echo(f"  the next step, {step['frames_per_second']:,.0f} frames a second, takes {more}{fit}")
    for note in found["notes"]:
        click.echo(f"  {note}")


def _time(ms: float) -> str:
    return f"{ms:.3g} ms" if ms >= 0.1 else f"{ms * 1e3:.3g} µs"


@fpga.command()
@model_argument
@target_option
@click.option("--bits", "pairs", multiple=True, default=("8:8", "4:4", "2:2"), show_default=True, help="W:A.")
@click.option("--keep", "shares", multiple=True, type=float, default=(1.0, 0.5), show_default=True)
@click.option("--layout", type=click.Choice(_LAYOUTS[:2]), default="streaming", show_default=True)
@flow_option
@fps_option
@json_option
def explore(
    model: Path,
    target: str,
    pairs: tuple[str, ...],
    shares: tuple[float, ...],
    layout: str,
    flow: str,
    fps: float | None,
    as_json: bool,
) -> None:
    """Bits, pruning and folding together: every combination, folded as well as the device allows.

    Accuracy must be trained for; this says which combinations are worth it, before anything is.
    """
    found = hwopt.fpga_explore(
        model,
        target=target,
        bits=[_pair(text) for text in pairs],
        keep=list(shares),
        **_wishes(layout=layout, flow=flow, frames_per_second=fps),
    )
    if as_json:
        print_json(found)
        return
    click.echo("bits W:A   kept   latency      frames/s    lut (upper)   dsp    bram   fits")
    for row in found["rows"]:
        need = row["resources"]
        click.echo(
            f"{row['weight_bits']}:{row['activation_bits']:<8} {row['keep']:<6g} "
            f"{_time(row['latency_ms']['p50']):>10s} {row['frames_per_second']:>11,.0f}  "
            f"{need['lut']['high']:>10,.0f}  {need['dsp']['high'] if 'dsp' in need else 0:>6,.0f} "
            f"{need['bram']['high'] if 'bram' in need else 0:>6,.0f}   "
            + _verdict(row)
            + ("  ← front" if row["front"] else "")
        )


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"]:
        return "yes"
    lacking = [*row["short"], *([row["missed"]] if row["missed"] else [])]
    return "no: " + "; ".join(lacking) if lacking else f"not judged: {', '.join(row['not_judged'])}"


inputs_option = click.option("--inputs", type=click.Path(path_type=Path), help="npz with the model's input.")
samples_option = click.option("--samples", type=click.IntRange(1), default=256, show_default=True)


@fpga.command()
@model_argument
@inputs_option
@samples_option
@json_option
def emulate(model: Path, inputs: Path | None, samples: int, as_json: bool) -> int:
    """Run a quantized model in integers and shifts, bit by bit, beside the file as written.

    Exit code 5 if the two differ by more than the rounding of the file's own floats.
    """
    found = hwopt.fpga_emulate(model, inputs=inputs, samples=samples)
    part = found["emulation"]
    if as_json:
        print_json(found)
    else:
        _compared("emulation against the file as written", part)
    return 0 if found["equal"] else _STAGE_FAILED


def _compared(title: str, part: dict[str, Any]) -> None:
    if "skipped" in part or "failed" in part:
        what = "skipped" if "skipped" in part else "FAILED"
        click.echo(f"{title}: {what}: {part.get('skipped') or part.get('failed')}")
        if part.get("fix"):
            click.echo(f"    fix: {part['fix']}")
        return
    click.echo(
        f"{title}: {part['identical']} of {part['samples']} samples identical bit for bit, greatest difference "
        f"{part['largest_difference']:.3g} of outputs up to {part['largest_output']:.3g}"
    )


@fpga.command()
@model_argument
@target_option
@inputs_option
@samples_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for C++ and Verilog.")
@click.option(
    "--io", type=click.Choice(["io_parallel", "io_stream"]), default="io_parallel", show_default=True
)
@json_option
@quiet_option
def prove(
    model: Path,
    target: str,
    inputs: Path | None,
    samples: int,
    output: Path | None,
    io: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Back a small network's unrolled design by hls4ml's C simulation, Verilog and Yosys.

    Steps whose tool is absent are skipped, with what to install. Exit code 5 if a step that ran differs.
    """
    found = hwopt.fpga_prove(
        model, target=target, inputs=inputs, samples=samples, output=output, io=io, progress=progress(quiet)
    )
    if as_json:
        print_json(found)
    else:
        _proof(found)
    return 0 if found["proven"] else _STAGE_FAILED


def _proof(found: dict[str, Any]) -> None:
    part = found["estimate"]
    if "resources" in part:
        need = part["resources"]
        click.echo(
            f"estimate (estimated): {need['lut']['estimate']:,.0f} LUT, {need['ff']['estimate']:,.0f} FF, "
            f"{part['cycles']} cycles, a result every cycle; {'; '.join(part['notes'])}"
        )
    else:
        _compared("estimate", part)
    _compared("emulation against the file as written", found["emulation"])
    _compared("C simulation by hls4ml", found["csim"])
    verilog = found["verilog"]
    if "simulation" not in verilog:
        _compared("Verilog", verilog)
        return
    _compared(f"Verilog, {verilog['stages']} stages", verilog["simulation"])
    made = verilog["synthesis"]
    if "lut" in made:
        click.echo(
            f"synthesis (compiled): {made['lut']:,} LUT ({_over(made['over_estimate']['lut'])} of the estimate), "
            f"{made['ff']:,} FF ({_over(made['over_estimate']['ff'])}), {made['dsp']} DSP, {made['bram']} BRAM; "
            f"{made['tool']}, {made['family']}"
        )
    else:
        _compared("synthesis", made)


def _over(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio - 1:+.1%}"


@fpga.command()
@model_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The QONNX file to write."
)
@json_option
def qonnx(model: Path, output: Path, as_json: bool) -> None:
    """Write a quantized model as QONNX, for FINN, hls4ml and Brevitas."""
    if not output.absolute().parent.is_dir():
        raise ConfigError("no such folder", where=str(output.absolute().parent), fix="make it first")
    if output.is_dir() or (output.exists() and model.exists() and output.samefile(model)):
        raise ConfigError(
            "the output is a folder or the model itself", where=str(output), fix="name another file"
        )
    found = hwopt.fpga_qonnx(model, output)
    if as_json:
        print_json(found)
    else:
        click.echo(f"written: {output}; {found['quantizers']} quantizers")
