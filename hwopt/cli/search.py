"""``hwopt search``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from hwopt.cli.console import (
    OUT_OF_TIME,
    STAGE_FAILED,
    VERDICT_CODES,
    json_option,
    print_json,
    progress,
    quiet_option,
    store_option,
)
from hwopt.config.profile import load
from hwopt.plugins import load_reference
from hwopt.report.render import render
from hwopt.report.rows import sentence
from hwopt.report.search import summary
from hwopt.report.text import columns
from hwopt.store.atomic import write_text
from hwopt.store.store import Store

_SHOWN = 10


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile, a.b=value."
)
@store_option
@json_option
@quiet_option
@click.option(
    "--study", metavar="NAME", help="Name of the search; a known one goes on.  [default: the profile's]"
)
@click.option(
    "--storage",
    metavar="URL",
    envvar="HWOPT_SEARCH_STORAGE",
    help="postgresql://USER@HOST/DB, sqlite:///FILE or grpc://HOST:PORT.  [default: a file in the store]",
)
@click.option(
    "--crew",
    type=click.Choice(["here", "queue", "ray"]),
    default="here",
    show_default=True,
    help="Who trains: this machine, those that --join, or a Ray cluster.",
)
@click.option("--join", is_flag=True, help="Work for a search that another machine leads, until it ends.")
@click.option(
    "--time-budget",
    "seconds",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Begin no trial after it; a worker that joins begins no job.",
)
@click.option(
    "--lease",
    "lease_seconds",
    type=click.FloatRange(min=2),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Without a sign of life, a worker's job is given to another.",
)
@click.option("--no-refit", is_flag=True, help="Leave out the winner's training on all data.")
def search(
    profile: Path,
    overrides: tuple[str, ...],
    store: Path,
    as_json: bool,
    quiet: bool,
    join: bool,
    no_refit: bool,
    **wishes: Any,
) -> int:
    """Find the best version that keeps the requirements, by the profile's section search.

    What cannot fit is never trained. The test split is read once, for the winner. The same command goes on after
    an interruption.
    """
    load_reference("hwopt.search.needs:needs_optuna")()
    run, wanted = load_reference("hwopt.search.session:search"), load_reference("hwopt.search.session:Wish")
    place, say = Store(store), progress(quiet)
    checked = load(profile, overrides)
    wish = wanted(refit=not no_refit, **wishes)
    if join:
        given = [name for name, asked in (("--crew", wish.crew != "here"), ("--no-refit", no_refit)) if asked]
        if given:
            raise click.UsageError(f"{given[0]} is for the lead, and --join works for one")
        done = load_reference("hwopt.search.crews.queue:join")(checked, place, say, wish)
        if as_json:
            print_json({"schema_version": 1, "jobs": done})
        else:
            click.echo(f"{done} jobs done")
        return 0

    def report(run_id: str, record: dict[str, Any]) -> None:
        for form in ("html", "md"):
            write_text(place.run_folder(run_id) / f"report.{form}", render(record, form))

    found = run(checked, place, say, wish, report)
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            click.echo(line)
        name = wishes["study"] or checked.name
        click.echo(f"report:  {store / 'search' / name / 'report.html'}")
    return _code(found)


def _code(found: Mapping[str, Any]) -> int:
    """PASS of the winner's run on the test split; FAIL where no version keeps the limits."""
    if found["winner"] is None:
        became = {t["status"] for t in found["trials"]}
        if "ok" in became:
            return 1
        return STAGE_FAILED if "failed" in became else OUT_OF_TIME  # the same command goes on
    record = found.get("record")
    if record is None:
        return VERDICT_CODES["INCONCLUSIVE"] if found.get("not_run") else 0
    if any(r["status"] == "failed" for r in record["results"]):
        return STAGE_FAILED
    return VERDICT_CODES[str(record["verdict"])]


def _lines(found: Mapping[str, Any]) -> list[str]:
    objectives = [o["metric"] for o in found["objectives"]]
    trials: Sequence[Mapping[str, Any]] = found["trials"]
    done = [t for t in trials if t["status"] == "ok" and all(m in t["values"] for m in objectives)]
    falling = found["objectives"][0]["goal"] == "min"
    first = found["winner"], objectives[0]
    done.sort(
        key=lambda t: (
            t["number"] != first[0],
            not t["keeps_limits"],
            t["values"][first[1]]["estimate"] * (1 if falling else -1),
        )
    )
    rows = [["trial", *objectives, "front", "version"]]
    for trial in done[:_SHOWN]:
        mark = (
            "winner"
            if trial["number"] == found["winner"]
            else "yes"
            if trial["number"] in found["front"]
            else ""
            if trial["keeps_limits"]
            else "misses limits"
        )
        version = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in trial["sample"].items())
        rows.append([str(trial["number"]), *(_number(trial["values"][m]) for m in objectives), mark, version])
    lines = [*columns(rows), "", summary(found)]
    shares = sorted(found["importance"].items(), key=lambda item: -item[1])[:5]
    if shares:
        lines.append("what mattered: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    record = found.get("record")
    if found.get("not_run"):
        lines.append(
            f"INCONCLUSIVE: the winner was not run here: {found['not_run']}; winner.yaml is its profile"
        )
    if record is not None:
        lines.append(f"on the test split: {sentence(record)}")
        lines.append(f"run:     {found['run']}")
    return lines


def _number(value: Mapping[str, Any]) -> str:
    low, high = value["low"], value["high"]
    text = f"{value['estimate']:.4g}"
    return text if low == high and low is not None else f"{text} [{_end(low)}, {_end(high)}]"


def _end(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
