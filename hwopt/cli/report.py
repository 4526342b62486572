"""``hwopt report RUN``."""

from __future__ import annotations

from pathlib import Path

import click

from hwopt.cli.console import store_option
from hwopt.report.render import FORMATS, render
from hwopt.store.atomic import write_text
from hwopt.store.store import Store


@click.command()
@click.argument("run", default="latest")
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), default="html", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File; default: stdout."
)
@store_option
def report(run: str, form: str, output: Path | None, store: Path) -> None:
    """Render a recorded run. RUN is an id, its beginning, or `latest`."""
    text = render(Store(store).record(run), form)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"report: {output}", err=True)
