"""A Click group whose commands are imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from hwopt.plugins import did_you_mean


class LazyGroup(click.Group):
    """Commands by name: a one-line help and ``"module:attribute"``.

    Listing them imports nothing, which keeps ``--help`` below 0.3 s of CPU time.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][1].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As Click does, with a did-you-mean."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and args[0] not in self.table and not args[0].startswith("-"):
                raise click.UsageError(
                    f"no such command {args[0]!r}: {did_you_mean(args[0], self.table)}", ctx
                ) from None
            raise error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names with their one-line help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (text, _) in self.table.items()])
