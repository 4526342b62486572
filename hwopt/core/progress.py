"""Progress that is shown nowhere, and small pictures for a line of it."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def silent(text: str) -> None:
    """For library use and ``--quiet``."""


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The last ``width`` values as bars between their least and their greatest."""
    shown = list(values)[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if not high > low:
        return _BARS[0] * len(shown)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in shown)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
