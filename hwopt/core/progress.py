"""Progress that is shown nowhere."""

from __future__ import annotations


def silent(text: str) -> None:
    """For library use and ``--quiet``."""
