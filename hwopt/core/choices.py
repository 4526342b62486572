"""The user's choices of data and model, and what a registry says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwopt.core.canonical import JSON
from hwopt.core.settings import Settings


class NoOptions(Settings):
    """For entries that take none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A data set by name.

    ``load(options)`` returns a ``Dataset`` not yet checked; ``files(options)`` are the files whose contents
    the data set is made of (their digests enter the step keys); ``libraries`` the same for packages.
    """

    settings: type[Settings]
    load: str  # "module:function"
    files: Callable[[Any], list[Path]] = lambda options: []
    paths: tuple[str, ...] = ()  # options that are paths, relative to the profile
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A network by name; ``build(sample_shape, classes, options)`` returns a torch module."""

    settings: type[Settings]
    build: str  # "module:function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A registry name or the user's own ``module:function``, with options."""

    name: str | None
    factory: str | None
    options: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {"name": self.name, "factory": self.factory, "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Choice:
        """The inverse of ``to_json``."""
        return cls(name=value["name"], factory=value["factory"], options=value["options"])
