"""What a tracker is: five verbs, and a light description. A new one is one file and one line in ``plugins.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hwopt.core.canonical import JSON
from hwopt.core.settings import Settings


class Sink(Protocol):
    """Where numbers go besides the ledger. Whatever it raises drops it; the run goes on."""

    def start(self, run: str, config: Mapping[str, JSON], /) -> None:
        """A run begins, or goes on under the same name; ``config`` is flat."""

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Numbers after ``step`` steps."""

    def note(self, step: int, text: str, /) -> None:
        """Something happened."""

    def artifact(self, path: Path, kind: str, /) -> None:
        """A file was made; by reference."""

    def finish(self, status: str, /) -> None:
        """ok, failed or interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSpec:
    """A tracker by name; ``make(settings)`` returns a sink and may import what it needs."""

    settings: type[Settings]
    make: str  # "module:function"
    extra: str | None = None  # the extra of hwopt that brings its library
