"""``hwopt bench MODEL…``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

import hwopt
from hwopt.cli.console import json_option, print_json, progress, quiet_option
from hwopt.core.profile import HOST_CPU
from hwopt.errors import ConfigError
from hwopt.report.rows import latency, size, speedup

UNHEALTHY: Final = 1


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--target", default=HOST_CPU, show_default=True, help="Device that is here, or its YAML file.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Runtime, several if given again; auto: all that are here.  [default: the device's first]",
)
@click.option(
    "--scenario",
    type=click.Choice(["single", "batch", "paced"]),
    default="single",
    show_default=True,
    help="One sample after the other, large batches, or one sample now and then.",
)
@click.option("--batch", type=click.IntRange(1, 65536), help="Samples a call.  [default: 1; batch: 32]")
@click.option("--rate", "rate_hz", type=click.FloatRange(0.1, 1000), help="Calls a second of scenario paced.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--spinning", is_flag=True, help="Let the runtime's threads wait busily.")
@click.option(
    "--inputs", type=click.Path(path_type=Path, dir_okay=False), help="npz with real inputs, by name."
)
@click.option(
    "--time-budget",
    "budget_seconds",
    type=click.FloatRange(0.1, 3600),
    default=6.0,
    show_default=True,
    help="Seconds of timed rounds.",
)
@click.option("--processes", type=click.IntRange(1, 16), default=2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--strict", is_flag=True, help="Refuse to measure on a machine that is not fit for it.")
@click.option("--self-test", is_flag=True, help="The same file as both sides: how far to trust this machine.")
@click.option(
    "--comparisons", type=click.IntRange(8, 10000), default=30, show_default=True, help="Of --self-test."
)
@click.option("--loadgen", is_flag=True, help="Percentiles by MLPerf LoadGen as well (not an MLPerf result).")
@quiet_option
@json_option
def bench(
    models: tuple[Path, ...],
    inputs: Path | None,
    self_test: bool,
    comparisons: int,
    loadgen: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure models; the first is the baseline of the others, in randomized rounds in fresh processes."""
    say = progress(quiet)
    if self_test:
        if len(models) > 1 or inputs is not None or loadgen or len(options["runtimes"]) > 1:
            raise ConfigError(
                "--self-test takes at most one model and one runtime, and no inputs", fix="leave the rest out"
            )
        found = hwopt.self_test(*models, comparisons=comparisons, progress=say, **options)
        if as_json:
            print_json(found)
        else:
            _say_self_test(found)
        return 0 if found["healthy"] else UNHEALTHY
    if not models:
        raise click.UsageError("Missing argument 'MODELS...'.")
    # LoadGen first: what it cannot do is known before anything is measured.
    theirs = hwopt.loadgen(models, inputs=inputs, progress=say, **options) if loadgen else []
    document = hwopt.benchmark(models, inputs=inputs, progress=say, **options) | {"loadgen": theirs}
    if as_json:
        print_json(document)
        return 0
    _say(document)
    return 0


def _say(document: dict[str, Any]) -> None:
    several = len({r["runtime"] for r in document["results"]}) > 1
    for r in document["results"]:
        name = Path(r["model"]).name + (f" in {r['runtime']}" if several else "")
        click.echo(f"{name}: {_row(r, document)} ({r['tier']} on {document['device']}, {r['runtime']})")
        for line in _notes(r):
            click.echo(f"    {line}")
    for choice in document["faster_runtime"]:
        others = ", ".join(
            f"{name} {speedup(ratio)}"
            for name, ratio in choice["speed_to_it"].items()
            if name != choice["runtime"]
        )
        click.echo(
            f"{Path(choice['model']).name}: the faster runtime is {choice['runtime']} ({others} of its speed)"
        )
    for one in document["refused"]:
        click.echo(f"{Path(one['model']).name} was not measured in {one['runtime']}: {one['reason']}")
    for one in document["loadgen"]:
        p99 = "not enough queries" if one["p99_bound_ms"] is None else f"p99 ≤ {one['p99_bound_ms']:.3g} ms"
        click.echo(
            f"{Path(one['model']).name}: LoadGen (no MLPerf result) p50 {one['p50_ms']:.3g} ms, "
            f"p90 {one['p90_ms']:.3g} ms, {p99}, {one['queries']} queries"
        )
    for warning in [*document["preflight"]["warnings"], *(w for s in document["gpu"] for w in s["warnings"])]:
        click.echo(f"! {warning}")


def _row(r: dict[str, Any], document: dict[str, Any]) -> str:
    share = "–" if r["integer_share"] is None else f"{r['integer_share']:.0%}"
    parts = [f"p50 {latency(r['latency_ms'])}", f"speed-up {speedup(r['speedup'])}"]
    if document["scenario"] == "batch":
        parts.append(f"{r['samples_per_second']:,.0f} samples/s")
    if r["latency_ms"]["p99_bound"] is not None:
        parts.append(f"p99 ≤ {r['latency_ms']['p99_bound']:.3g} ms")
    parts.append(size(r["file_bytes"]))
    if r["footprint"]["added_bytes"] is not None:
        parts.append(f"{r['footprint']['added_bytes'] / 1e6:.0f} MB of memory")
    if r["footprint"]["load_seconds"] is not None:
        parts.append(f"loads in {r['footprint']['load_seconds'] * 1e3:.0f} ms")
    return ", ".join([*parts, f"{share} of the weighted operators in integer"])


def _notes(r: dict[str, Any]) -> list[str]:
    found = []
    ratio, pairs = r["speedup"], r.get("pairs", {})
    if "no_faster_because" in r:
        said = "slower than" if ratio["high"] is not None and ratio["high"] < 1 else "no faster than"
        found.append(f"it is {said} {Path(r['against']['model']).name}:")
        found += [f"  {cause['text']} → {cause['fix']}" for cause in r["no_faster_because"]]
    if pairs.get("degraded"):
        found.append(f"only {pairs['clean_share']:.0%} of the pairs were undisturbed; the machine was busy")
    if r["against"]["runtime"] != r["runtime"]:
        found.append(f"compared with {Path(r['against']['model']).name} in {r['against']['runtime']}")
    if not r["steady"]:
        found.append("the runtime did not reach a steady state before timing")
    return found


def _say_self_test(found: dict[str, Any]) -> None:
    verdicts = ", ".join(f"{count} {name}" for name, count in found["verdicts"].items())
    half = "unknown" if found["half_width_median"] is None else f"{found['half_width_median']:.2%}"
    planted = found["planted"]
    click.echo(
        f"{found['comparisons']} comparisons of one file with itself in {found['runtime']}: {verdicts} at "
        f"{found['margin']:.0%}; {found['false_claims']} intervals without the truth; bias {found['bias']:+.2%}, "
        f"error {found['error_median']:.2%} (95 %: {found['error_p95']:.2%}), half-width {half}, "
        f"{found['clean_share']:.0%} of the pairs undisturbed (measured)"
    )
    click.echo(
        f"{len(planted['estimates'])} comparisons with 5 % more work: {planted['verdicts']['FAIL']} found, "
        f"{planted['verdicts']['INCONCLUSIVE']} inconclusive, {planted['verdicts']['PASS']} missed (measured)"
    )
    for warning in found["preflight"]["warnings"]:
        click.echo(f"! {warning}")
    click.echo(
        "sound: what is measured here can be believed to its interval"
        if found["healthy"]
        else "NOT sound: intervals miss the truth more often than they may; something biases this machine"
    )
