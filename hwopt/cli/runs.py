"""``hwopt runs``: list, show, compare, tag, check and clear what is on record."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from hwopt.cli.console import json_option, print_json, store_option
from hwopt.core.canonical import JSON
from hwopt.errors import ConfigError
from hwopt.report.rows import cells
from hwopt.report.text import terminal
from hwopt.store.care import audit, remove, waste
from hwopt.store.events import read_events
from hwopt.store.lock import release
from hwopt.store.store import Store

NOT_WHOLE: Final = 1


@click.group()
def runs() -> None:
    """List, show, compare, tag, verify and clear recorded runs."""


def _there(store: Path) -> Store:
    if not store.is_dir():
        raise ConfigError(
            "there is no store", where=str(store), fix="name the folder that runs were recorded in: --store"
        )
    return Store(store)


@runs.command("list")
@click.option("-n", "--last", type=click.IntRange(min=1), help="Only the newest so many.")
@store_option
@json_option
def list_runs(store: Path, as_json: bool, last: int | None) -> None:
    """All runs of the store, oldest first."""
    place = Store(store)
    found = place.summaries()[-last if last else 0 :]
    tags: dict[str, list[str]] = {}
    for tag, run in place.tags().items():
        tags.setdefault(run, []).append(tag)
    if as_json:
        rows: list[JSON] = [{**asdict(s), "tags": list[JSON](tags.get(s.run, []))} for s in found]
        print_json({"schema_version": 2, "runs": rows})
        return
    for s in found:
        named = f"  [{', '.join(tags[s.run])}]" if s.run in tags else ""
        state = s.verdict if s.status == "finished" and s.verdict else s.status
        click.echo(f"{s.run}  {state:12s}  {s.started:25s}  {s.seconds:7.1f}s  {s.name}{named}")
    if not found:
        click.echo(f"no runs in {store}", err=True)


@runs.command()
@click.argument("run", default="latest")
@store_option
@json_option
def show(run: str, store: Path, as_json: bool) -> None:
    """One run. RUN is an id, its beginning, a tag, or `latest`; of one that was cut off, what happened in it."""
    place = Store(store)
    cut = [s.run for s in place.summaries() if s.status == "unfinished" and s.run.startswith(run)]
    if len(cut) == 1 and run not in place.tags() and not any(r.startswith(run) for r in place.runs()):
        _show_events(place, cut[0], as_json=as_json)
        return
    record = place.record(run)
    if as_json:
        print_json(record)
        return
    click.echo(f"{record['run']}  {record['name']}  {record['verdict']}  {record['started']}")
    click.echo(terminal(record))


def _show_events(place: Store, run: str, *, as_json: bool) -> None:
    events = list(read_events(place.run_folder(run) / "events.jsonl"))
    if as_json:
        print_json({"schema_version": 1, "run": run, "status": "unfinished", "events": list[JSON](events)})
        return
    click.echo(f"{run}  unfinished: it was cut off, or still works")
    for event in events:
        words = [str(event[key]) for key in ("label", "status", "reason") if event.get(key)]
        click.echo(f"    {event['event']}" + (f": {', '.join(words)}" if words else ""))


@runs.command()
@click.argument("first")
@click.argument("second", default="latest")
@store_option
@json_option
def diff(first: str, second: str, store: Path, as_json: bool) -> None:
    """What two runs were asked, with what, and what came out. To measure one against the other: `hwopt compare`."""
    place = Store(store)
    a, b = place.record(first), place.record(second)
    text = list(
        difflib.unified_diff(
            a["profile"]["text"].splitlines(),
            b["profile"]["text"].splitlines(),
            a["run"],
            b["run"],
            lineterm="",
            n=1,
        )
    )
    world = _differences("", {"libraries": a["environment"]["libraries"], "host": a["environment"]["host"],
                              "data": a.get("data"), "source": a.get("source"), "seed": a["seed"]},
                         {"libraries": b["environment"]["libraries"], "host": b["environment"]["host"],
                          "data": b.get("data"), "source": b.get("source"), "seed": b["seed"]})  # fmt: skip
    rows = {(r["candidate"], r["target"]): [r, None] for r in a["results"]}
    for r in b["results"]:
        rows.setdefault((r["candidate"], r["target"]), [None, None])[1] = r
    changed = [
        {"candidate": c, "target": t, "first": _cells(one), "second": _cells(two)}
        for (c, t), (one, two) in rows.items()
        if _cells(one) != _cells(two)
    ]
    steps = {s["key"] for s in a["steps"]}, {s["key"] for s in b["steps"]}
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "first": a["run"],
                "second": b["run"],
                "profile": list[JSON](text),
                "world": list[JSON](world),
                "results": list[JSON](changed),
                "steps": {"shared": len(steps[0] & steps[1]), "only_first": len(steps[0] - steps[1]),
                          "only_second": len(steps[1] - steps[0])},
            }
        )  # fmt: skip
        return
    for line in [*text, *world]:
        click.echo(line)
    click.echo(f"{len(steps[0] & steps[1])} steps are the same, {len(steps[1] - steps[0])} are new")
    for row in changed:
        click.echo(f"{row['candidate']} on {row['target']}:")
        click.echo(f"    - {'  '.join(row['first'][2:]) or 'not in the run'}")
        click.echo(f"    + {'  '.join(row['second'][2:]) or 'not in the run'}")
    if changed:
        click.echo("times of two runs were not taken side by side: `hwopt compare` does that", err=True)


def _cells(row: dict[str, Any] | None) -> list[str]:
    return [] if row is None else cells(row, chosen=False)


def _differences(at: str, a: Any, b: Any) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line for key in sorted({*a, *b}) for line in _differences(f"{at}{key}.", a.get(key), b.get(key))
        ]
    return [] if a == b else [f"{at.rstrip('.')}: {a} → {b}"]


@runs.command()
@click.argument("run")
@click.argument("name")
@store_option
@json_option
def tag(run: str, name: str, store: Path, as_json: bool) -> None:
    """Let NAME mean a run, for example `released`; it may be moved, and tagged runs are never cleared."""
    place = Store(store)
    place.tag(run, name)
    found = place.tags()[name]
    if as_json:
        print_json({"schema_version": 1, "tag": name, "run": found})
    else:
        click.echo(f"{name}: {found}")


@runs.command()
@click.argument("run", required=False)
@store_option
@json_option
def verify(run: str | None, store: Path, as_json: bool) -> int:
    """Hold every file of RUN, or of all runs, against its digest; exit 1 if something is lost."""
    found = audit(_there(store), run)
    if as_json:
        document: dict[str, Any] = {"schema_version": 1, "whole": found.whole, **asdict(found)}
        print_json({k: list(v) if isinstance(v, tuple) else v for k, v in document.items()})
    else:
        for digest in found.damaged:
            click.echo(f"damaged  {digest}: set aside; the next run makes it again")
        for digest in found.gone:
            click.echo(f"gone     {digest}")
        for name in found.broken_records:
            click.echo(f"damaged  the record of {name}")
        for name in found.unfinished:
            click.echo(f"note     {name} has no record: it was cut off, or still works")
        state = "whole" if found.whole else "NOT whole"
        click.echo(f"{found.runs} runs, {found.files} files: {state}")
    return 0 if found.whole else NOT_WHOLE


@runs.command()
@click.option("--keep", type=click.IntRange(min=0), help="Runs to keep, the newest; tagged ones stay too.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Runs that began longer ago."
)
@click.option("--yes", is_flag=True, help="Remove; without it, only say what would go.")
@store_option
@json_option
def gc(keep: int | None, older_than: float | None, yes: bool, store: Path, as_json: bool) -> None:
    """Remove runs, and files that no run needs."""
    place = _there(store)
    with place.locked(0):
        found = waste(place, keep=keep, older_than_days=older_than, now=datetime.now(UTC))
        if yes:
            remove(place, found)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "removed": yes,
                "runs": list[JSON](found.runs),
                "steps": len(found.steps),
                "files": len(found.objects),
                "bytes": found.bytes,
            }
        )
        return
    did = "removed" if yes else "would remove (--yes does)"
    size = f"{found.bytes / 1e6:,.1f} MB"
    click.echo(
        f"{did}: {len(found.runs)} runs, {len(found.steps)} steps, {len(found.objects)} files of {size}"
    )


@runs.command()
@click.option("--force", is_flag=True, help="Although its owner seems to be alive.")
@store_option
@json_option
def unlock(force: bool, store: Path, as_json: bool) -> None:
    """Free a store whose owner died on another machine; on this one that needs no help."""
    said = release(store, force=force)
    if as_json:
        print_json({"schema_version": 1, "done": said})
    else:
        click.echo(said)
