"""``hwopt bundle``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import hwopt
from hwopt.cli.console import json_option, print_json, store_option
from hwopt.errors import ConfigError


@click.command()
@click.argument("run", default="latest")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to write, or a file ending in .zip."
)
@click.option("--target", help="Whose version; needed where several have one.")
@click.option("--candidate", help="Another version than the one to ship.")
@click.option(
    "--check", "checked", type=click.Path(path_type=Path), help="Prove a bundle instead of writing one."
)
@store_option
@json_option
def bundle(
    run: str,
    output: Path | None,
    target: str | None,
    candidate: str | None,
    checked: Path | None,
    store: Path,
    as_json: bool,
) -> None:
    """Write a release folder of RUN: model, contract, manifest with digests, report; or prove one."""
    if (output is None) == (checked is None):
        raise ConfigError(
            "give --output FOLDER to write a bundle, or --check FOLDER to prove one", fix="give one of them"
        )
    if checked is not None:
        manifest = hwopt.check_bundle(checked)
        _say(manifest, f"{checked}: whole, the model is sound and keeps its contract", as_json=as_json)
        return
    manifest = hwopt.bundle(run, str(output), store=store, target=target, candidate=candidate)
    _say(manifest, f"written: {output}", as_json=as_json)


def _say(manifest: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(manifest)
        return
    click.echo(text)
    click.echo(f"    {manifest['candidate']} on {manifest['target']}, run {manifest['run']}")
    readiness = manifest.get("readiness")
    if readiness and readiness["verdict"] != "READY" and readiness["candidate"] == manifest["candidate"]:
        click.echo(f"    {readiness['verdict']}: {readiness['why']}")
