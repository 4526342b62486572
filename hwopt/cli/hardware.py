"""``hwopt hardware list | show | detect``."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

import hwopt
from hwopt.cli.console import json_option, print_json, progress, quiet_option
from hwopt.config import hardware as profiles
from hwopt.core.canonical import JSON
from hwopt.core.hardware import NAME
from hwopt.core.profile import HOST_CPU
from hwopt.engine import host as this_host
from hwopt.engine.prepare import host_profile
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.measuring.gpu import first_gpu
from hwopt.measuring.preflight import preflight
from hwopt.store.atomic import write_text


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
    found, gpu = preflight(), first_gpu()
    if as_json:
        limits: JSON = {"cores": found.cores, "quota_cores": found.quota_cores}
        seen: JSON = {"reason": gpu} if isinstance(gpu, str) else {"name": gpu.title, "isa": gpu.isa}
        print_json(
            {"schema_version": 1, "host": host.to_json(), "limits": limits, "gpu": seen, "profile": value}
        )
    else:
        click.echo(f"# {host.cpu}, {host.cores} usable cores: {', '.join(sorted(host.isa))}")
        if found.quota_cores is not None:
            click.echo(f"# a control group allows {found.quota_cores:g} cores")
        click.echo(f"# GPU: {gpu if isinstance(gpu, str) else f'{gpu.title}, {gpu.isa}'}")
        click.echo(_yaml(value), nl=False)


@hardware.command()
@click.option("--target", default=HOST_CPU, show_default=True, help="Device that is here, or its YAML file.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("my-cpu.yaml"),
    show_default=True,
    help="The file to write; the profile gets its name.",
)
@quiet_option
@json_option
def calibrate(target: str, threads: int, output: Path, quiet: bool, as_json: bool) -> None:
    """Time a micro-suite on this machine and write a profile that predictions use; about a minute."""
    if output.suffix != ".yaml" or not NAME.fullmatch(output.stem):
        raise ConfigError(
            f"{output.name} is no name of a hardware profile",
            fix="small letters, digits, dots and dashes, and .yaml at the end",
        )
    if not output.absolute().parent.is_dir():
        raise ConfigError("no such folder", where=str(output.absolute().parent), fix="make it first")
    made = hwopt.calibrate(target, threads=threads, progress=progress(quiet))
    kept = made.calibration
    value = made.to_json() | {"name": output.stem, "describes_host": False}
    sources = value["sources"]
    if isinstance(sources, dict) and kept is not None:
        sources["calibration"] = (
            f"micro-suite of {kept.models} networks, measured by hwopt {hwopt.__version__}"
        )
    write_text(output, _yaml(value))
    if as_json:
        print_json({"schema_version": 1, "written": str(output), "profile": value})
        return
    click.echo(
        f"written: {output}; predictions lie within a factor of {kept.spread if kept else 0:.2f}, 9 of 10"
    )


def _yaml(value: dict[str, JSON]) -> str:
    kept = {key: item for key, item in value.items() if item not in (None, [], {})}
    text: str = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110)
    return text
