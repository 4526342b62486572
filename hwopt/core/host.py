"""What this machine is, as far as results depend on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts read from the operating system; nothing is assumed."""

    arch: str  # x86_64, aarch64, …
    isa: frozenset[str]  # features, in the names that hardware profiles use
    cpu: str  # model name as the system gives it
    cores: int  # usable by this process
    system: str  # for example Linux 6.1
    caches_kib: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON; the fingerprint of measured steps."""
        return {
            "arch": self.arch,
            "isa": list[JSON](sorted(self.isa)),
            "cpu": self.cpu,
            "cores": self.cores,
            "system": self.system,
            "caches_kib": dict(self.caches_kib),
        }


def is_device(host: Host, hardware: HardwareProfile) -> bool:
    """Whether this machine is of the kind that a CPU profile describes."""
    return can_run(host, hardware) and host.isa.isdisjoint(hardware.isa_absent)


def can_run(host: Host, hardware: HardwareProfile) -> bool:
    """Whether code for the profile runs here, be it on better silicon."""
    return (
        hardware.kind is DeviceKind.CPU
        and hardware.arch in {None, host.arch}
        and host.isa.issuperset(hardware.isa)
    )


def describe(host: Host, profiles: Iterable[HardwareProfile]) -> HardwareProfile | None:
    """The most specific CPU profile that this machine is of the kind of; None if there is none."""
    fitting = [profile for profile in profiles if profile.describes_host and is_device(host, profile)]
    return max(fitting, key=lambda p: (len(p.isa), p.arch is not None, p.name), default=None)
