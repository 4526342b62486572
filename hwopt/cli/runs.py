"""``hwopt runs list | show``."""

from __future__ import annotations

from pathlib import Path

import click

from hwopt.cli.console import json_option, print_json, store_option
from hwopt.report.text import terminal
from hwopt.store.store import Store


@click.group()
def runs() -> None:
    """List and show recorded runs."""


@runs.command("list")
@store_option
@json_option
def list_runs(store: Path, as_json: bool) -> None:
    """All runs of the store, oldest first."""
    place = Store(store)
    records = [place.record(name) for name in place.runs()]
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "runs": [
                    {k: r[k] for k in ("run", "name", "verdict", "started", "seconds")} for r in records
                ],
            }
        )
        return
    for r in records:
        click.echo(f"{r['run']}  {r['verdict']:12s}  {r['started']}  {r['seconds']:7.1f}s  {r['name']}")
    if not records:
        click.echo(f"no runs in {store}", err=True)


@runs.command()
@click.argument("run", default="latest")
@store_option
@json_option
def show(run: str, store: Path, as_json: bool) -> None:
    """One run. RUN is an id, its beginning, or `latest`."""
    record = Store(store).record(run)
    if as_json:
        print_json(record)
        return
    click.echo(f"{record['run']}  {record['name']}  {record['verdict']}  {record['started']}")
    click.echo(terminal(record))
