"""``hwopt search-server``."""

from __future__ import annotations

from pathlib import Path

import click

from hwopt.cli.console import store_option
from hwopt.plugins import load_reference


@click.command()
@click.option(
    "--storage", required=True, metavar="URL", envvar="HWOPT_SEARCH_STORAGE", help="The database behind it."
)
@click.option("--host", default="localhost", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=13000, show_default=True, help="Port to listen at."
)
@store_option
def search_server(storage: str, host: str, port: int, store: Path) -> None:
    """Hand a search's storage on to many workers over gRPC. It asks for no password: listen where you trust all."""
    load_reference("hwopt.search.needs:needs_optuna")()
    click.echo(f"serving at grpc://{host}:{port}", err=True)
    load_reference("hwopt.search.ledger:serve")(storage, store / "search", host, port)
