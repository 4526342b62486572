"""Hardware profiles: the shipped ones, and the user's own by path."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import hwopt
from hwopt.config.problems import validate
from hwopt.config.yaml_text import parse, read_text
from hwopt.core.hardware import HardwareProfile
from hwopt.errors import ConfigError, Problem
from hwopt.plugins import did_you_mean

_PACKAGE: Final = Path(hwopt.__file__).parent


def folder() -> Path:
    """Where the shipped profiles stand: inside the wheel, or at the top of a checkout."""
    inside = _PACKAGE / "hardware_profiles"
    return inside if inside.is_dir() else _PACKAGE.parent / "hardware_profiles"


@cache
def names() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def read(path: Path) -> HardwareProfile:
    """One profile from a file; ConfigError with every problem in it."""
    document = parse(read_text(path), path)
    problems: list[Problem] = []
    profile = validate(HardwareProfile, document.value, document, (), problems)
    if profile is None:
        raise ConfigError.of(problems)
    if profile.name != path.stem:
        raise ConfigError(
            f"the profile is named {profile.name!r} but its file {path.name!r}",
            where=document.where(("name",)),
            fix="make the two equal",
        )
    return profile


@cache
def shipped(name: str) -> HardwareProfile:
    """A shipped profile; ConfigError with a hint for an unknown name."""
    if name not in names():
        raise ConfigError(
            f"unknown device {name!r}",
            fix=did_you_mean(name, (*names(), "host-cpu")) + "; or give the path of a YAML file",
        )
    return read(folder() / f"{name}.yaml")


def find(name: str, base: Path) -> HardwareProfile:
    """By name, or by path (relative to ``base``) where ``name`` ends in .yaml."""
    if name.endswith((".yaml", ".yml")):
        path = base / name
        if not path.is_file():
            raise ConfigError(
                f"no such hardware profile: {name}", fix=f"it is looked for in {path.parent.resolve()}"
            )
        return read(path)
    return shipped(name)
