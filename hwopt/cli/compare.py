"""``hwopt compare RUN_A RUN_B``."""

from __future__ import annotations

from pathlib import Path

import click

import hwopt
from hwopt.cli.console import json_option, print_json, progress, quiet_option, store_option
from hwopt.errors import ConfigError


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--target", help="Only this one.")
@click.option("--across-versions", is_flag=True, help="Although other library versions made one of them.")
@store_option
@json_option
@quiet_option
def compare(
    first: str,
    second: str,
    target: str | None,
    across_versions: bool,
    store: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """What SECOND would change against FIRST; each is RUN or RUN:CANDIDATE. Latency is measured now, interleaved."""
    if first.endswith(".onnx") or second.endswith(".onnx"):
        raise ConfigError(
            "these are files, and compare takes runs",
            fix="hwopt bench A.onnx B.onnx for speed, hwopt verify B.onnx --against A.onnx for outputs",
        )
    found = hwopt.compare_runs(
        first, second, store=store, target=target, across_versions=across_versions, progress=progress(quiet)
    )
    if as_json:
        print_json(found)
        return
    for one in found["targets"]:
        click.echo(f"{one['target']}: {one['second']} against {one['first']}")
        for metric, ends in one["ratios"].items():
            click.echo(f"    {_words(metric, ends['low'], ends['high'])}")
        for metric, why in one["missing"].items():
            click.echo(f"    {metric}: not known, {why}")


def _words(metric: str, low: float, high: float) -> str:
    if metric == "accuracy_drop":
        return f"accuracy falls by [{low * 100:+.2f}, {high * 100:+.2f}] pp (95 %, paired)"
    exact = f"{low:.3f}" if low == high else f"[{low:.3f}, {high:.3f}]"
    return f"{metric} is {exact} of it"
