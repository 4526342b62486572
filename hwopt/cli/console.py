"""What commands share: the store option, progress on stderr, JSON on stdout."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from hwopt.cli.signals import heed
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.progress import silent
from hwopt.core.stage import Progress

F = TypeVar("F", bound=Callable[..., Any])

VERDICT_CODES: Final = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
STAGE_FAILED: Final = 5
OUT_OF_TIME: Final = 8

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".hwopt"),
    envvar="HWOPT_STORE",
    show_default=True,
    help="Where runs and finished steps are kept.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")


def progress(quiet: bool) -> Progress:
    """Lines on stderr with the seconds since the start; nothing with ``--quiet``."""
    if quiet:
        return silent
    start = time.monotonic()

    def say(text: str) -> None:
        heed()
        click.echo(f"{time.monotonic() - start:7.1f}s  {text}", err=True)

    return say


def print_json(value: JSON) -> None:
    """One document on stdout."""
    click.echo(pretty_json(value), nl=False)
