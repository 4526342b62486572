"""``hwopt check MODEL``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

import hwopt
from hwopt.cli.console import json_option, print_json
from hwopt.core.canonical import pretty_json
from hwopt.errors import UnsafeInputError
from hwopt.plugins import load_reference
from hwopt.report.rows import size
from hwopt.report.sarif import sarif
from hwopt.store.atomic import write_text

REFUSED: Final = 1


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", help="Device, here or not, or its YAML file.")
@click.option(
    "--batch", type=click.IntRange(1, 65536), default=1, show_default=True, help="To tune engines for."
)
@click.option(
    "--sarif", "sarif_file", type=click.Path(path_type=Path, dir_okay=False), help="Write findings as SARIF."
)
@json_option
def check(model: Path, target: str | None, batch: int, sarif_file: Path | None, as_json: bool) -> int:
    """Whether MODEL is a sound ONNX file, and whether a device takes it; exit 1 if the device does not
    or a finding is an error, 6 if it is not safe to read.

    GPUs need not be here: their compiler builds an engine without one (tier compiled, no latency).
    """
    try:
        found = hwopt.check(model, target=target, batch=batch)
    except UnsafeInputError as error:
        refused = {"rule": "unsafe-input", "level": "error", "text": error.problems[0].problem, "node": ""}
        _write_sarif(sarif_file, model, [refused])
        raise
    _write_sarif(sarif_file, model, found["findings"])
    if as_json:
        print_json(found)
    else:
        _say(found)
    broken = any(one["level"] == "error" for one in found["findings"])
    return REFUSED if found["accepted"] is False or broken else 0


def _write_sarif(file: Path | None, model: Path, findings: list[dict[str, Any]]) -> None:
    if file is not None:
        rules = load_reference("hwopt.model_lint:RULES")
        log = sarif([(_relative(model), one) for one in findings], rules, hwopt.__version__)
        write_text(file, pretty_json(log))


def _relative(path: Path) -> str:
    """As code scanning wants it: from the folder that the command was called in, with slashes."""
    place = path.resolve()
    return place.relative_to(Path.cwd()).as_posix() if place.is_relative_to(Path.cwd()) else place.name


def _say(found: dict[str, Any]) -> None:
    operators = ", ".join(f"{count} {name}" for name, count in found["operators"].items())
    inputs = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in found["inputs"].items())
    click.echo(
        f"{Path(found['model']).name}: sound ONNX, {size(found['file_bytes'])}; takes {inputs}; {operators}"
    )
    for one in found["findings"]:
        place = f" ({one['node']})" if one["node"] else ""
        click.echo(f"  {one['level']}: {one['rule']}: {one['text']}{place}")
    if found["accepted"] is None:
        return
    for name, one in found.get("runtimes", {}).items():
        share = one.get("integer_share")
        integer = "" if share is None else f", {share:.0%} of the weighted operators in integer"
        click.echo(
            f"{name}: "
            + (f"loads and runs it{integer}" if one["accepted"] else f"refuses it: {one['reason']}")
        )
    if "compiler" not in found:
        return
    if found["accepted"]:
        click.echo(
            f"{found['device']}: {found['compiler']} built an engine of {size(found['engine_bytes'])} in "
            f"{found['build_seconds']:.1f} s (compiled, not run)"
        )
    else:
        click.echo(f"{found['device']}: {found['compiler']} does not take it")
    for reason in found["reasons"]:
        click.echo(f"  {reason['text']}" + (f" → {reason['fix']}" if reason["fix"] else ""))
        if reason["said"]:
            click.echo(f"    it said: {reason['said']}")
    for note in found["notes"]:
        click.echo(f"  note: {note}")
