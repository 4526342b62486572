"""What could disturb a measurement here, read before it begins; nothing is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hwopt.core.canonical import JSON

_CPU: Final = Path("/sys/devices/system/cpu")
_BUSY: Final = 0.5  # others' load, a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Facts; None where the system does not tell."""

    cores: int  # usable by this process
    cores_online: int
    quota_cores: float | None  # of the control group
    load: float  # runnable tasks over the last minute, all users
    governor: str | None
    turbo: bool | None
    smt: bool | None
    virtual: bool | None  # under a hypervisor
    steal_share: float | None  # of all CPU time since boot
    memory_pressure: float | None  # share of the last 10 s that some task waited for memory
    celsius: float | None
    on_battery: bool | None

    def warnings(self) -> list[str]:
        """What is not as it should be, each in one sentence."""
        found = []
        if self.load > _BUSY * self.cores_online:
            found.append(f"the machine is busy: load {self.load:.1f} on {self.cores_online} cores")
        if self.quota_cores is not None and self.quota_cores < self.cores:
            found.append(
                f"a control group allows {self.quota_cores:g} of {self.cores} cores: bursts are throttled"
            )
        if self.governor not in {None, "performance"}:
            found.append(f"the clock follows the load (governor {self.governor})")
        if self.steal_share is not None and self.steal_share > 0.02:
            found.append(f"other guests of this host took {self.steal_share:.0%} of the CPU time since boot")
        if self.memory_pressure is not None and self.memory_pressure > 0.01:
            found.append(f"tasks wait for memory {self.memory_pressure:.0%} of the time")
        if self.on_battery:
            found.append("the machine runs on battery")
        return found

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON, with the warnings."""
        values: dict[str, JSON] = {name: getattr(self, name) for name in self.__slots__}
        return values | {"warnings": list[JSON](self.warnings())}


def preflight() -> Preflight:
    """Look around."""
    online = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else online
    return Preflight(
        cores=cores,
        cores_online=online,
        quota_cores=_quota(),
        load=os.getloadavg()[0],
        governor=_text(_CPU / "cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(),
        smt=_flag(_CPU / "smt/active"),
        virtual=_virtual(),
        steal_share=steal_since((0, 0)),
        memory_pressure=_pressure(),
        celsius=_celsius(),
        on_battery=_battery(),
    )


def cpu_ticks() -> tuple[int, int] | None:
    """Ticks that the hypervisor gave to others, and all ticks, since boot (proc_stat(5), eighth column)."""
    line = (_text(Path("/proc/stat")) or "").split("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    ticks = [int(value) for value in line[1:9]]
    return ticks[7], sum(ticks)


def steal_since(before: tuple[int, int] | None) -> float | None:
    """Share of CPU time that the hypervisor gave to others since ``before``."""
    now = cpu_ticks()
    if now is None or before is None or now[1] <= before[1]:
        return None
    return (now[0] - before[0]) / (now[1] - before[1])


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None  # hidden by a container, or another system


def _flag(path: Path) -> bool | None:
    return {"1": True, "0": False}.get(_text(path) or "")


def _turbo() -> bool | None:
    off = _flag(_CPU / "intel_pstate/no_turbo")
    return _flag(_CPU / "cpufreq/boost") if off is None else not off


def _virtual() -> bool | None:
    text = _text(Path("/proc/cpuinfo"))
    flags = next((line for line in (text or "").split("\n") if line.startswith("flags")), None)
    return None if flags is None else " hypervisor" in flags


def _quota() -> float | None:
    """Cores of cgroup v2 (cpu.max: quota and period), or of v1."""
    parts = (_text(Path("/sys/fs/cgroup/cpu.max")) or "").split()
    if len(parts) == 2 and parts[0] != "max":
        return int(parts[0]) / int(parts[1])
    v1 = Path("/sys/fs/cgroup/cpu")
    quota, period = _text(v1 / "cpu.cfs_quota_us"), _text(v1 / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _pressure() -> float | None:
    """Pressure stall information: ``some avg10=0.00 …``."""
    for part in (_text(Path("/proc/pressure/memory")) or "").split():
        if part.startswith("avg10="):
            return float(part.removeprefix("avg10=")) / 100
    return None


def _celsius() -> float | None:
    zones = [_text(path) for path in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(value) / 1000 for value in zones if value and value.lstrip("-").isdigit()]
    return max(degrees, default=None)


def _battery() -> bool | None:
    """Whether a battery is the only source; None where there is no battery or no mains to be read."""
    supplies = list(Path("/sys/class/power_supply").glob("*"))
    kinds = {path: _text(path / "type") for path in supplies}
    mains = [_flag(path / "online") for path, kind in kinds.items() if kind == "Mains"]
    return None if "Battery" not in kinds.values() or not mains else not any(mains)
