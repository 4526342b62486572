"""Read what this machine is from the operating system."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final

from hwopt.core.host import Host

_CPUINFO: Final = Path("/proc/cpuinfo")
_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_MEMORY_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# As Linux names a feature -> as hardware profiles do.
_FEATURES: Final = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "fphp": "fp16",
    "i8mm": "i8mm",
    "sve": "sve",
    **{
        name: name
        for name in (
            "sse4_1",
            "avx",
            "avx2",
            "fma",
            "avx512f",
            "avx512bw",
            "avx512_vnni",
            "avx512_bf16",
            "avx_vnni",
            "avx_vnni_int8",
            "amx_int8",
            "amx_bf16",
        )
    },
}
_MAC_FEATURES: Final = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512vnni": "avx512_vnni",
}


def detect() -> Host:
    """This machine. Features that cannot be read are absent: the safe side for choosing a scheme."""
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if platform.system() == "Darwin":
        cpu, isa = _mac()
    else:
        cpu, isa = _linux(_CPUINFO.read_text() if _CPUINFO.is_file() else "")
    return Host(
        arch=arch,
        isa=frozenset(isa | ({"neon"} if arch == "aarch64" else set())),
        cpu=cpu or platform.processor() or "unknown",
        cores=usable_cores(),
        system=f"{platform.system()} {platform.release()}",
        caches_kib=_caches(),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _linux(cpuinfo: str) -> tuple[str, set[str]]:
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    words = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name", "").strip(), {_FEATURES[word] for word in words if word in _FEATURES}


def _mac() -> tuple[str, set[str]]:
    def sysctl(name: str) -> str:
        result = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
        return result.stdout.strip()

    return sysctl("machdep.cpu.brand_string"), {v for k, v in _MAC_FEATURES.items() if sysctl(k) == "1"}


def _caches() -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for folder in sorted(_CACHES.glob("index*")) if _CACHES.is_dir() else []:
        try:
            level, kind = (folder / "level").read_text().strip(), (folder / "type").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue  # a container may hide single entries
        if kind != "Instruction" and size.endswith("K"):
            found[f"l{level}" + ("d" if level == "1" else "")] = int(size[:-1])
    return tuple(sorted(found.items()))


def memory_bytes() -> int | None:
    """Memory that this process may fill: of the machine, or of its container where that is less; None if unknown."""
    found: list[int] = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None
    for path in _MEMORY_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found)
