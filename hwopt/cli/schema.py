"""``hwopt schema``."""

from __future__ import annotations

import click

from hwopt.cli.console import print_json
from hwopt.config.schema import KINDS
from hwopt.config.schema import schema as schema_of


@click.command()
@click.argument("kind", type=click.Choice(KINDS), default="profile")
def schema(kind: str) -> None:
    """Print the JSON Schema of a profile, a policy or a hardware profile, for editors.

    In VS Code with the YAML extension: `hwopt schema > profile.schema.json`, and as the first line of the profile
    `# yaml-language-server: $schema=profile.schema.json`.
    """
    print_json(schema_of(kind))
