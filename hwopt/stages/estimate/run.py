"""Analytic cost of an FPGA design: folding, cycles, resources, fits or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np

from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.choices import NoOptions
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.layer_table import Layer, LayerKind, layer_table, unsupported
from hwopt.numerics.fpga import Float, last_needed, stream_times
from hwopt.stages.estimate.fold import LUT_BAND, Design, search, usable

# Ten measured boards lie within 16 % of the pixel simulation with nothing fitted (shared design notes,
# "What matters most", 1); rounded up, because this estimator's folding is its own.
LATENCY_BAND = 0.2
_INPUT_BITS_A_CYCLE = 64  # one AXI stream


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: NoOptions) -> StageResult:
    """Fold the network onto the fabric of the target."""
    if ctx.hardware is None or ctx.hardware.fpga is None:
        raise StageFailedError("estimate needs a hardware profile with a section `fpga`")
    fabric = ctx.hardware.fpga
    layers = layer_table(inputs["model"].path)
    strange = unsupported(layers)
    if strange:
        raise StageFailedError(
            "no hardware unit for "
            + "; ".join(f"{op} ({', '.join(names)})" for op, names in strange.items()),
            fix="replace the operators, or choose another target",
        )
    floats = [
        layer.name for layer in layers if layer.macs and max(layer.weight_bits, layer.activation_bits) > 16
    ]
    if floats:
        raise StageFailedError(
            f"{len(floats)} layers have float weights or inputs, first {floats[0]}; {ctx.hardware.name} "
            "computes with integers of 1 to 16 bits",
            fix="quantize the model for this target first",
        )
    design = search(layers, fabric)
    cycles = latency_cycles(layers, design)
    milliseconds = cycles / (fabric.clock_mhz * 1e3)
    table = ctx.workdir / "layers.json"
    rows: list[JSON] = [
        {
            "layer": f.layer.name,
            "op": f.layer.op,
            "pe": f.p,
            "simd": f.q,
            "dsp_multipliers": f.in_dsp,
            "weight_bits": f.layer.weight_bits,
            "activation_bits": f.layer.activation_bits,
            "cycles": f.cycles,
            "lut": round(f.resources.lut),
            "dsp": round(f.resources.dsp),
            "bram18": round(f.resources.bram18),
        }
        for f in design.foldings
    ]
    table.write_text(pretty_json(rows))
    bottleneck = max(design.foldings, key=lambda f: f.cycles)
    limits = usable(fabric)
    need = {"lut": design.total.lut, "dsp": design.total.dsp, "bram18": design.total.bram18}
    fits = not design.short
    ctx.progress(
        f"estimate: {cycles:,.0f} cycles, {milliseconds:.4f} ms at {fabric.clock_mhz:g} MHz, "
        + ("fits" if fits else "does not fit: " + "; ".join(design.short))
    )
    return StageResult(
        files={"layers": table},
        facts={
            "tier": Tier.ESTIMATED.value,
            "fits": fits,
            "latency_ms": {
                "p50": milliseconds,
                "p90": None,
                "count": 0,
                "low": milliseconds * (1 - LATENCY_BAND),
                "high": milliseconds * (1 + LATENCY_BAND),
            },
            "fpga": {
                "mapping": "streaming",
                "part": fabric.part,
                "clock_mhz": fabric.clock_mhz,
                "cycles": round(cycles),
                "interval_cycles": design.interval,
                "frames_per_second": fabric.clock_mhz * 1e6 / design.interval,
                "bottleneck": bottleneck.layer.name,
                "short": list(design.short),
                "resources": {
                    name: {
                        "estimate": round(value),
                        "high": round(value * (1 + LUT_BAND)) if name == "lut" else round(value),
                        "usable": int(limits[name]),
                    }
                    for name, value in need.items()
                },
                "layers": rows,
            },
        },
    )


def latency_cycles(layers: Sequence[Layer], design: Design) -> float:
    """Cycles from the first input word to the last output, by simulating the pipeline pixel by pixel."""
    times: dict[str, Float] = {}
    sizes: dict[str, tuple[int, int]] = {}
    first = layers[0]
    height, width = _plane(first.in_shape)
    words = max(1, ceil(first.in_shape[0] * first.activation_bits / _INPUT_BITS_A_CYCLE))
    times[""] = (np.arange(height * width, dtype=np.float64) + 1) * words
    sizes[""] = (height, width)
    folding = {f.layer.name: f for f in design.foldings}
    last = ""
    for layer in layers:
        sources = [source for source in layer.inputs if source in times] or [last]
        arrival = times[sources[0]]
        for other in sources[1:]:
            if len(times[other]) == len(arrival):
                arrival = np.maximum(arrival, times[other])  # a join waits for its slower side
        in_size = sizes[sources[0]]
        out_size = _plane(layer.out_shape)
        needed = _needed(layer, in_size, out_size, len(arrival))
        times[layer.name] = stream_times(arrival, needed, folding[layer.name].cycles / len(needed))
        sizes[layer.name] = out_size
        last = layer.name
    return float(times[last][-1])


def _needed(layer: Layer, in_size: tuple[int, int], out_size: tuple[int, int], arrivals: int) -> np.ndarray:
    outputs = out_size[0] * out_size[1]
    if layer.kind in {LayerKind.DENSE, LayerKind.GLOBAL_POOL}:
        return np.full(outputs, arrivals - 1, np.int64)
    if layer.kind is LayerKind.ADD:
        return np.minimum(np.arange(outputs, dtype=np.int64), arrivals - 1)
    return last_needed(in_size, out_size, layer.kernel, layer.stride, layer.padding)


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
