"""What a stage may write down while it works: numbers by step, and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Ledger(Protocol):
    """Append-only; the only source of curves in reports and of what trackers get."""

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Numbers after ``step`` steps."""

    def note(self, step: int, text: str, /) -> None:
        """Something happened."""

    def rewind(self, step: int, /, *, notes: bool = False) -> None:
        """Forget numbers after ``step``, and with ``notes`` False events too: the training goes on from there."""


class NoLedger:
    """For library use: nothing is kept."""

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Nothing."""

    def note(self, step: int, text: str, /) -> None:
        """Nothing."""

    def rewind(self, step: int, /, *, notes: bool = False) -> None:
        """Nothing."""
