"""``hwopt hardware list | show | detect``."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from hwopt.cli.console import json_option, print_json
from hwopt.config import hardware as profiles
from hwopt.core.canonical import JSON
from hwopt.core.profile import HOST_CPU
from hwopt.engine import host as this_host
from hwopt.engine.pipeline import host_profile
from hwopt.errors import EngineMissingError


@click.group()
def hardware() -> None:
    """List, show and detect devices."""


@hardware.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """All shipped hardware profiles; an arrow marks the one that describes this machine."""
    found = [profiles.shipped(name) for name in profiles.names()]
    mine = host_profile()
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "host": mine.name if mine else None,
                "profiles": [{"name": p.name, "kind": p.kind.value, "title": p.title} for p in found],
            }
        )
        return
    for p in found:
        click.echo(f"{'→' if mine and p.name == mine.name else ' '} {p.name:18s} {p.kind.value:5s} {p.title}")


@hardware.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """One profile, with the source of every number. NAME may be host-cpu or a YAML file."""
    profile = host_profile() if name == HOST_CPU else profiles.find(name, Path.cwd())
    if profile is None:
        raise EngineMissingError(
            "no shipped profile describes this machine's CPU", fix="hwopt hardware detect"
        )
    value = profile.to_json()
    if as_json:
        print_json({"schema_version": 1, "profile": value})
    else:
        click.echo(_yaml(value), nl=False)


@hardware.command()
@json_option
def detect(as_json: bool) -> None:
    """Write a profile of this machine's CPU as YAML; redirect it to NAME.yaml and name that as a target."""
    host = this_host.detect()
    base = host_profile()
    if base is None:
        raise EngineMissingError(
            f"no shipped profile fits a CPU of architecture {host.arch}",
            fix="copy hardware_profiles/generic-cpu.yaml and adapt it",
        )
    value = base.to_json() | {
        "name": "my-cpu",
        "title": host.cpu,
        "isa": list(base.isa),
        "compute": None,
        "memory": {"caches_kib": dict(host.caches_kib)},
        "sources": {
            "memory.caches_kib": "sysfs of this machine",
            "quantization": f"hardware profile {base.name}, chosen by the features of this CPU",
            "pruning": f"hardware profile {base.name}",
        },
    }
    if as_json:
        print_json({"schema_version": 1, "host": host.to_json(), "profile": value})
    else:
        click.echo(f"# {host.cpu}, {host.cores} usable cores: {', '.join(sorted(host.isa))}")
        click.echo(_yaml(value), nl=False)


def _yaml(value: dict[str, JSON]) -> str:
    kept = {key: item for key, item in value.items() if item not in (None, [], {})}
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)
    return text
