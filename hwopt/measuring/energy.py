"""Energy from a counter, where one can be read; it is never estimated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwopt.measuring.block import Call

_RAPL: Final = Path("/sys/class/powercap")
_LEAST_SECONDS: Final = 0.5  # counters tick about every millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Joules so far, and where they are read."""

    name: str
    read: Callable[[], float]
    wraps_at: float  # joules


def package_counter() -> Counter | None:
    """The first processor package's counter (powercap, intel-rapl; AMD names it the same); None if unreadable.

    It counts the whole package, other programs included.
    """
    for folder in sorted(_RAPL.glob("intel-rapl:?")):
        energy, limit = folder / "energy_uj", folder / "max_energy_range_uj"
        try:
            energy.read_text()
            most = int(limit.read_text()) / 1e6
        except OSError:
            continue  # since CVE-2020-8694 only root may read it

        def read(path: Path = energy) -> float:
            return int(path.read_text()) / 1e6

        return Counter(name=folder.name, read=read, wraps_at=most)
    return None


def joules_a_call(call: Call, counter: Counter, seconds: float = _LEAST_SECONDS) -> float:
    """Mean energy of a call over at least ``seconds``, of the whole package."""
    start, count, end = counter.read(), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        call()
        count += 1
    used = counter.read() - start
    return (used if used >= 0 else used + counter.wraps_at) / count
