"""``hwopt track push``: feed a recorded run to a tracker afterwards."""

from __future__ import annotations

from pathlib import Path

import click

from hwopt.cli.console import json_option, print_json, store_option
from hwopt.config.yaml_text import parse_scalar
from hwopt.core.canonical import JSON
from hwopt.engine.tracking import push as push_run
from hwopt.store.store import Store


@click.group()
def track() -> None:
    """Hand what a run wrote down to a tracker."""


@track.command()
@click.argument("run", default="latest")
@click.option("--to", "name", required=True, help="tensorboard, mlflow, wandb, or a plug-in.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="A setting of the tracker.")
@store_option
@json_option
def push(run: str, name: str, options: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Replay the ledgers of RUN into a tracker. RUN is an id, its beginning, or `latest`."""
    given: dict[str, JSON] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise click.BadParameter(f"{option!r} is not KEY=VALUE", param_hint="--option")
        given[key] = parse_scalar(text)
    said = push_run(Store(store), run, name, given)
    if as_json:
        print_json({"schema_version": 1, "pushed": list[JSON](said)})
        return
    for line in said:
        click.echo(line)
