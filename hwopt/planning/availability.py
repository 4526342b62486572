"""Which targets can be served here, by which runtimes, and why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hwopt.core.artifact import Kind
from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.host import Host, can_run, is_device
from hwopt.core.profile import Target
from hwopt.plugins import resolve, table

AUTO: Final = "auto"  # the runtime that measures faster


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the planner must know of its surroundings."""

    host: Host
    host_profile: HardwareProfile | None  # the device that this machine is of the kind of
    probe: Callable[[str], Availability]  # by backend name
    data_fingerprint: str
    model_code: str  # digest of the user's module, or empty


@dataclass(slots=True)
class Available:
    """How a target can be served here."""

    hardware: HardwareProfile | None = None
    runtime: str | None = None
    among: tuple[str, ...] = ()  # those to choose from by measuring; empty where one was named
    latency: bool = True  # whether timing here says something about the device
    unavailable: str | None = None
    fix: str | None = None
    notes: dict[str, str] = field(default_factory=dict)


def available(target: Target, world: World, asked: str | None, among: Sequence[str] = ()) -> Available:
    """Where and how a target runs, or why it does not.

    Args:
        asked: the runtime that the profile names, ``auto``, or None for the device's first.
        among: what ``auto`` may choose from; all that deploy ONNX files on such a device if empty.
    """
    hardware = target.hardware or world.host_profile
    if hardware is None:
        return Available(
            unavailable="no hardware profile describes this machine's CPU",
            fix="write one: hwopt hardware detect > my-cpu.yaml, and name it as the target",
        )
    result = Available(hardware=hardware)
    if hardware.kind is DeviceKind.FPGA:
        return result
    host = world.host
    if hardware.kind is DeviceKind.CPU and not can_run(host, hardware):
        lacking = sorted(set(hardware.isa) - host.isa)
        why = f"it is {host.arch}" if hardware.arch not in {None, host.arch} else f"no {', '.join(lacking)}"
        result.unavailable = f"this machine is not a {hardware.name}: {why}"
        result.fix = "run the pipeline on such a device"
        return result
    if hardware.kind is DeviceKind.CPU and not is_device(host, hardware):
        more = ", ".join(sorted(host.isa & set(hardware.isa_absent)))
        result.latency = False
        result.notes["latency_ms"] = (
            f"not measured: this CPU has {more}, so its speed is not that of {hardware.name}"
        )
    names = [name for name in hardware.runtimes if asked in {None, name}]
    if asked == AUTO:
        names = [n for n in table("backend") if _deploys(n, hardware) and (not among or n in among)]
        names.sort(
            key=lambda n: (n not in hardware.runtimes, n)
        )  # what the device's scheme is made for first
    if not names:
        result.unavailable = f"{hardware.name} has no runtime {asked}"
        result.fix = f"its runtimes are {', '.join(hardware.runtimes)}"
        return result
    reasons: list[tuple[str, str | None]] = []
    here = []
    for name in names:
        reason = _reason(name, hardware, world)
        if reason is None:
            here.append(name)
        else:
            reasons.append(reason)
    if not here:
        result.unavailable = "; ".join(reason for reason, _ in reasons)
        result.fix = next((fix for _, fix in reasons if fix), None)
        return result
    if among and reasons:  # asked for by name
        why = "; ".join(text for text, _ in reasons)
        result.notes["runtime"] = f"auto did not choose among all that were named: {why}"
    result.runtime = here[0]
    result.among = tuple(here) if asked == AUTO else ()
    return result


def _reason(name: str, hardware: HardwareProfile, world: World) -> tuple[str, str | None] | None:
    """Why a backend cannot serve a device here, and what mends it; None where it can."""
    if name not in table("backend"):
        return f"{name}: this hwopt has no backend of that name", None
    backend: BackendSpec = resolve("backend", name)
    if hardware.kind not in backend.kinds:
        return f"{name}: it does not run on a {hardware.kind.value}", None
    state = world.probe(name)
    if not state.available:
        return f"{name}: {state.reason}", state.fix
    if state.isa is not None and state.isa not in hardware.isa:
        return f"{name}: the device here is {state.device} ({state.isa}), not a {hardware.name}", None
    return None


def _deploys(name: str, hardware: HardwareProfile) -> bool:
    """Whether a backend runs ONNX files on a kind of device."""
    spec: BackendSpec = resolve("backend", name)
    return hardware.kind in spec.kinds and Kind.ONNX in spec.takes
