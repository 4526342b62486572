"""Facts of steps to the rows of a record. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hwopt.core.canonical import JSON
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.plan import Row
from hwopt.errors import Problem

# The stable core of a row, in order; everything else goes to `details`.
CORE: Final = (
    "accuracy",
    "accuracy_drop",
    "f1",
    "agreement",
    "latency_ms",
    "speedup",
    "file_bytes",
    "parameters",
    "macs",
    "integer_share",
)
_TIER_ORDER: Final = [Tier.MEASURED, Tier.COMPILED, Tier.ESTIMATED, Tier.PREDICTED]


def assemble(
    row: Row,
    facts: list[Mapping[str, Any]],
    failure: Problem | None,
    hardware: HardwareProfile | None,
    stopped: str | None = None,
) -> dict[str, JSON]:
    """One result. ``facts`` are those of the row's finished steps, in order; ``failure`` or ``stopped`` ends them."""
    merged: dict[str, Any] = {}
    goals: list[JSON] = []
    tiers: list[Tier] = []
    for part in facts:
        if "pruning_goal" in part:  # each of several cuts has its own
            goals.append(part["pruning_goal"])
        merged.update(part)
        if "tier" in part:
            tiers.append(Tier(part["tier"]))
    merged.pop("tier", None)
    status = "unavailable" if row.unavailable else "failed" if failure else "stopped" if stopped else "ok"
    result: dict[str, JSON] = {
        "candidate": row.candidate,
        "target": row.target,
        "status": status,
        "reason": row.unavailable or (failure.problem if failure else stopped),
        # The weakest evidence names the row: an FPGA design with measured accuracy is an estimate.
        "tier": max(tiers, key=_TIER_ORDER.index).value if tiers else None,
        **{name: merged.pop(name, None) for name in CORE},
        "scheme": row.hardware if hardware is not None else None,
        "verdict": None,
    }
    missing = dict(row.notes)
    for name in CORE:
        if result[name] is None and name not in missing:
            missing[name] = _why_missing(name, row, status, hardware)
    if status != "ok":
        missing = {name: str(result["reason"]) for name in CORE if result[name] is None}
    reference = merged.get("benchmark", {}).get("reference")
    if (
        reference
        and hardware is not None
        and hardware.calibration is not None
        and not merged["benchmark"]["rate_hz"]
    ):
        # What the machine should take; not part of the measured step, which a new calibration leaves as it is.
        kept = {"on_record_ms": hardware.calibration.reference_ms}
        merged["benchmark"] = {**merged["benchmark"], "reference": {**reference, **kept}}
    details: dict[str, JSON] = dict(merged)
    if goals:
        details["pruning_goals"] = goals
    details["missing"] = dict[str, JSON](missing)
    details["applicable"] = row.applicable
    details.setdefault("asked_integer", row.quantized)
    fix = row.fix or (failure.fix if failure else None)
    if fix:
        details["fix"] = fix
    if failure and failure.where:
        details["where"] = failure.where
    if hardware is not None:
        scheme = hardware.quantization
        weights, activations = scheme.weights, scheme.activations
        details["scheme"] = {
            "device": hardware.title,
            "weights": f"{weights.dtype} {list(weights.codes)} per {weights.granularity}",
            "activations": f"{activations.dtype} per {activations.granularity}",
            "why": scheme.why,
        }
    result["details"] = details
    return result


def _why_missing(name: str, row: Row, status: str, hardware: HardwareProfile | None) -> str:
    fpga = hardware is not None and hardware.fpga is not None
    if name == "speedup" and fpga:
        return f"{row.hardware} has no float model to compare with"
    if name == "integer_share" and fpga:
        return "no runtime executes the design; its arithmetic is integer throughout"
    if name in {"speedup", "latency_ms"} and "latency_ms" in row.notes:
        return row.notes["latency_ms"]
    if name == "integer_share":
        return "the model has no convolution or matrix operator"
    return "not obtained"
