"""``hwopt predict MODEL…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import hwopt
from hwopt.cli.console import json_option, print_json


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Device, or its YAML file; it need not be here.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@json_option
def predict(models: tuple[Path, ...], target: str, batch: int, threads: int, as_json: bool) -> None:
    """How fast ONNX models would be on a device; the order of several is the useful part.

    From the device's calibration (hwopt hardware calibrate), or from its data sheet. Nothing is run.
    """
    found = hwopt.predict(models, target=target, batch=batch, threads=threads)
    if as_json:
        print_json(found)
        return
    for row in found["results"]:
        _say(row, found["device"])


def _say(row: dict[str, Any], name: str) -> None:
    ms = row["latency_ms"]
    parts = ", ".join(
        f"{kind} {share:.0%}" for kind, share in sorted(row["share_by_kind"].items(), key=lambda x: -x[1])[:4]
    )
    click.echo(
        f"{Path(row['model']).name}: {ms['estimate']:.3g} ms [{ms['low']:.3g}, {ms['high']:.3g}] on {name} "
        f"(predicted, {row['basis']}); {parts}"
    )
    over = row.get("over_the_first")
    if over:
        ratio = over["speedup"]
        click.echo(
            f"    {ratio['estimate']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}] the speed of the first; "
            f"faster with a probability of {over['faster']:.0%}"
        )
    if row["priced_by_traffic_alone"]:
        click.echo(f"    by their traffic alone: {', '.join(row['priced_by_traffic_alone'])}")
    if row["fits_in_memory"] is False:
        click.echo("    it does not fit into the device's memory")
