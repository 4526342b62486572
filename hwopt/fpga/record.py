"""A design as JSON: what records, reports and the command line show."""

from __future__ import annotations

from hwopt.core.canonical import JSON
from hwopt.core.measurement import Tier
from hwopt.fpga.design import Design, Unit
from hwopt.fpga.energy import energy
from hwopt.fpga.search import Found, Step


def to_json(design: Design, found: Found | None, tier: Tier = Tier.ESTIMATED) -> dict[str, JSON]:
    """Everything about a design; times in milliseconds, energy in microjoules a frame."""
    seconds = design.cycles.estimate / (design.clock_mhz * 1e6)
    bottleneck = design.bottleneck
    return {
        "tier": tier.value,
        "layout": design.layout.value,
        "part": design.fabric.part,
        "clock_mhz": design.clock_mhz,
        "fits": design.fits,
        "verdict": design.verdict,
        "short": list(design.short),
        "missed": design.missed or None,
        "not_judged": list(design.unknown),
        "cycles": round(design.cycles.estimate),
        "interval_cycles": round(design.interval),
        "latency_ms": latency_ms(design),
        "frames_per_second": design.frames_per_second,
        "bottleneck": bottleneck.layer.name,
        "resources": {
            name: {
                "estimate": round(need.estimate, 1),
                "low": round(need.low, 1),
                "high": round(need.high, 1),
                "usable": int(need.usable),
                "available": int(need.available),
                "fits": need.fits,
            }
            for name, need in design.needs.items()
        },
        "off_chip_bytes": round(sum(unit.off_chip_bytes for unit in design.units)),
        "on_chip_bytes": round(sum(unit.on_chip_bytes for unit in design.units)),
        "energy": energy(design.units, design.fabric.power, seconds),
        "fifo_pixels": dict[str, JSON](design.fifo_words),
        "notes": list(design.notes),
        "search": None if found is None else _search(found, design),
        "layers": [_unit(unit, design) for unit in design.units],
    }


def latency_ms(design: Design) -> dict[str, JSON]:
    """From the first input word to the last output."""
    scale = 1 / (design.clock_mhz * 1e3)
    return {
        "p50": design.cycles.estimate * scale,
        "p90": None,
        "count": 0,
        "low": design.cycles.low * scale,
        "high": design.cycles.high * scale,
    }


def _unit(unit: Unit, design: Design) -> JSON:
    layer, used = unit.layer, unit.resources
    return {
        "layer": layer.name,
        "op": layer.op,
        "macs": layer.macs,
        "pe": unit.p,
        "simd": unit.q,
        "reuse": unit.reuse if layer.is_weighted else None,
        "dsp_multipliers": unit.in_dsp,
        "weights_in": unit.weights_in or None,
        "weight_bits": layer.weight_bits if layer.is_weighted else None,
        "activation_bits": layer.activation_bits,
        "cycles": round(unit.cycles),
        "busy": min(1.0, unit.cycles / design.interval),
        "lut": round(used.lut * design.fabric.lut_per_lut6),
        "ff": round(used.ff),
        "dsp": round(used.dsp),
        "bram": round(used.bram),
        "uram": round(used.uram),
        "off_chip_bytes": round(unit.off_chip_bytes),
    }


def _search(found: Found, design: Design) -> JSON:
    return {
        "exact": found.exact,
        "next_step": None if found.next_step is None else _step(found.next_step, design),
        "curve": [_step(step, design) for step in found.curve],
    }


def _step(step: Step, design: Design) -> JSON:
    return {
        "interval_cycles": round(step.interval),
        "frames_per_second": design.clock_mhz * 1e6 / step.interval,
        "fits": step.fits,
        **{
            name: round(amount * (design.fabric.lut_per_lut6 if name == "lut" else 1))
            for name, amount in step.resources.items()
        },
    }
