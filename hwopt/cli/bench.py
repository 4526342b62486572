"""``hwopt bench MODEL…``."""

from __future__ import annotations

from pathlib import Path

import click

import hwopt
from hwopt.cli.console import json_option, print_json
from hwopt.core.profile import HOST_CPU
from hwopt.report.rows import latency, size, speedup


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", default=HOST_CPU, show_default=True, help="Device that is here, or its YAML file.")
@click.option("--batch", type=click.IntRange(1, 65536), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--time-budget",
    type=click.FloatRange(0.1, 3600),
    default=6.0,
    show_default=True,
    help="Seconds of timed pairs for each model.",
)
@json_option
def bench(
    models: tuple[Path, ...], target: str, batch: int, threads: int, time_budget: float, as_json: bool
) -> None:
    """Measure ONNX models; the first is the baseline of the others, in interleaved pairs."""
    document = hwopt.benchmark(
        models, target=target, batch=batch, threads=threads, budget_seconds=time_budget
    )
    if as_json:
        print_json(document)
        return
    for r in document["results"]:
        share = "–" if r["integer_share"] is None else f"{r['integer_share']:.0%}"
        click.echo(
            f"{Path(r['model']).name}: p50 {latency(r['latency_ms'])}, speed-up {speedup(r['speedup'])}, "
            f"{size(r['file_bytes'])}, {share} of the weighted operators in integer ({r['tier']} on "
            f"{document['device']})"
        )
