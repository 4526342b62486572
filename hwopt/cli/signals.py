"""Ctrl-C and kill: asked once, never lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

_asked: list[int] = []


def listen() -> None:
    """Make SIGINT and SIGTERM end the command in the same way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    raise KeyboardInterrupt


def heed() -> None:
    """Interrupt now what did not notice: a library may swallow the exception, for example while it is imported."""
    if _asked:
        raise KeyboardInterrupt


def deafen() -> None:
    """A second Ctrl-C must not interrupt the farewell."""
    _asked.clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
