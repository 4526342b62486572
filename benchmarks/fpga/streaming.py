"""Published streaming designs against the formulas: interval, latency, DSP, LUT, FF, each case with its error."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from math import prod
from operator import add
from pathlib import Path
from typing import Any

import yaml

from hwopt.config.hardware import shipped
from hwopt.core.fpga import Flow, FpgaFabric
from hwopt.fpga import flows, streaming
from hwopt.fpga.design import Resources, Unit
from hwopt.fpga.flows import Fold
from hwopt.fpga.simulate import simulate
from hwopt.layer_table import Layer, LayerKind

HERE = Path(__file__).parent
_KINDS = {
    "conv": LayerKind.CONV, "depthwise": LayerKind.DEPTHWISE, "dense": LayerKind.DENSE, "maxpool": LayerKind.POOL,
    "avgpool": LayerKind.POOL, "global_avgpool": LayerKind.GLOBAL_POOL, "add": LayerKind.ADD, "concat": LayerKind.CONCAT,
}  # fmt: skip
# Of the board's host, each fitted on one row, which is then no test: microseconds of a MicroBlaze's driver, and
# cycles that hls4ml's wrapper takes for each float it moves over m_axi.
_FLOAT_CYCLES = 7.5
_MICROBLAZE_US = 11.0
# In io_parallel; registers that the compiler puts between two blocks.
_PARALLEL = {
    "hls4ml-iris": 1,
    "hls4ml-base-conv2d-vivado": 0,
    "hls4ml-base-conv2d-vitis": 0,
    "hls4ml-i99-dsp": 0,
    "hls4ml-i99-lut": 0,
}
_CALIBRATION = {"mlt07-pynq-ad08", "mlt07-arty-ad08"}
# Outside the model: a negative example, and a folding file that is not the one of the published figure.
OUTSIDE = {
    "hls4ml-i446-rf": "the compiler could not pipeline it: a negative example",
    "finnex-vgg10-zcu104": "the folding file in the repository is not that of the figure in its README",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One case."""

    id: str
    in_the_file: bool
    tool: str
    measured: dict[str, float]
    found: dict[str, float]
    calibration: bool = False
    note: str = ""
    errors: dict[str, float] = field(default_factory=dict)


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((HERE / "streaming.yaml").read_text())
    return found


def layers(case: dict[str, Any]) -> list[tuple[Layer, dict[str, Any]]]:
    """The table of a case, with the folding of each layer."""
    given = case["input"]
    shapes = {"input": (given["channels"], given.get("height", 1), given.get("width", 1))}
    found = []
    for row in case["layers"]:
        kind = _KINDS.get(row["op"], LayerKind.ACTIVATION)
        ins, more = shapes[row["inputs"][0]], {}
        out = ins
        if kind in {LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.POOL}:
            k, s, p = row["kernel"], row.get("stride", [1, 1]), row.get("pads", [0, 0, 0, 0])
            out = (
                row.get("out", ins[0]),
                (ins[1] + p[0] + p[2] - k[0]) // s[0] + 1,
                (ins[2] + p[1] + p[3] - k[1]) // s[1] + 1,
            )
            groups = 1 if kind is LayerKind.CONV else ins[0]
            more = {
                "kernel": tuple(k),
                "stride": tuple(s),
                "padding": tuple(p[:2]),
                "pad_after": tuple(p[2:]),
                "groups": groups,
            }
        elif kind is LayerKind.DENSE:
            ins, out = (row.get("in_features", prod(ins)), 1, 1), (row["out"], 1, 1)
        elif kind is LayerKind.GLOBAL_POOL:
            out = (ins[0], 1, 1)
        elif kind is LayerKind.CONCAT:
            out = (sum(shapes[n][0] for n in row["inputs"]), *ins[1:])
        weights = (
            out[0] * prod(more.get("kernel", (1, 1))) * ins[0] // more.get("groups", 1)
            if kind in {LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.DENSE}
            else 0
        )
        found.append((
            Layer(
                name=row["name"], op=row["op"], kind=kind, inputs=tuple("" if n == "input" else n for n in row["inputs"]), in_shape=ins, out_shape=out,
                weight_bits=row.get("weight_bits") or 32, activation_bits=row.get("activation_bits") or 16, out_bits=row.get("out_bits") or 16, weights=weights, macs=weights * prod(out[1:]), **more,
            ), row,
        ))  # fmt: skip
        shapes[row["name"]] = out
    return found


def units(case: dict[str, Any], fabric: FpgaFabric) -> list[Unit]:
    """Circuits as the tool builds them."""
    found, pixels = [], {"": prod((case["input"].get("height", 1), case["input"].get("width", 1)))}
    overhead = (
        5 if ("kw" in case["id"] or "cnn-model" in case["id"] or "rn06" in case["id"]) else 4
    )  # encoded windows
    for layer, row in layers(case):
        words = pixels[layer.inputs[0]]
        if not layer.is_weighted:
            unit = streaming.stream_unit(layer, fabric, _lanes(layer, case, row))
            if "cycles" in row and row["op"] in {"threshold", "other"}:
                unit = _replace(unit, cycles=row["cycles"])
        elif case["tool"] == "hls4ml":
            unit = flows.hls4ml_unit(
                layer,
                fabric,
                row["rf"],
                words,
                worst=bool(case["measured"].get("worst_case")),
                parallel="base-conv" in case["id"],
                overhead=overhead if layer.kind is not LayerKind.DENSE else 4,
            )
        else:
            fold = Fold(
                pe=row.get("pe"),
                simd=row.get("simd"),
                **{n: row[n] for n in ("coarse_in", "coarse_out", "coarse_group", "fine") if n in row},
                in_dsp=row.get("use_dsp", case["tool"] == "fpgaconvnet"),
            )
            unit = flows.folded(layer, fabric, Flow(case["tool"]), fold, words)
        found.append(unit)
        pixels[layer.name] = prod(layer.out_shape[1:])
    return found


def _lanes(layer: Layer, case: dict[str, Any], row: dict[str, Any]) -> int:
    """FINN and hls4ml stream whole pixels through pools and joins; fpgaConvNet a value a cycle."""
    if case["tool"] == "fpgaconvnet":
        return row.get("coarse_in", 1)
    return row.get("pe") or layer.out_shape[0]


def _replace(unit: Unit, **more: Any) -> Unit:
    from dataclasses import replace

    return replace(unit, **more)


def run(case: dict[str, Any]) -> Result:
    fabric = shipped("zcu102").fpga
    assert fabric is not None
    built, measured = units(case, fabric), dict(case["measured"])
    given, tool = case["input"], case["tool"]
    bits = given.get("stream_bits") or given["bits"] * given["channels"]
    if tool == "fpgaconvnet":
        bits = given["bits"]  # a value a cycle
    elif tool == "finn":
        bits = _finn_input(case)
    cycles = simulate(built, bits).cycles
    interval = max(u.cycles for u in built) + (
        1 if tool == "hls4ml" else 0
    )  # the handshake of a dataflow region
    if case["id"] in _PARALLEL:
        pixels = max(u.layer.pixels for u in built)
        cycles = pixels - 1 + flows.parallel_latency([u.layer for u in built], _PARALLEL[case["id"]])
        interval = pixels
    note, microseconds = "", cycles / case["clock_mhz"] if case["clock_mhz"] else 0.0
    if "ad08" in case["id"]:
        first, last = built[0].layer.columns, built[-1].layer.rows
        microseconds += (first + last) * _FLOAT_CYCLES / case["clock_mhz"]
        note = "float wrapper fitted on this row"
    if "arty" in case["id"]:
        microseconds += _MICROBLAZE_US
        note = "MicroBlaze's driver fitted on AD08"
    total = reduce(add, (u.resources for u in built), Resources())
    found = {
        "latency_us": microseconds,
        "ii_cycles": interval,
        "dsp": _dsp(case, built, total),
        "lut": total.lut,
        "ff": total.ff,
    }
    if "ii_cycles_from_folding" in measured:
        measured["ii_cycles"] = measured["ii_cycles_from_folding"]
    errors = {n: found[n] / measured[n] - 1 for n in found if measured.get(n)}
    if tool == "finn":
        errors.pop("dsp", None)  # address arithmetic of the shell; the multipliers are in LUTs
    return Result(
        id=case["id"],
        in_the_file=case["in_the_file"],
        tool=tool,
        measured=measured,
        found=found,
        calibration=case["id"] in _CALIBRATION,
        note=note,
        errors=errors,
    )


def _finn_input(case: dict[str, Any]) -> int:
    """Bits a cycle of FINN's input DMA: the greatest common divisor with its 64-bit bus; a byte on the Arty."""
    from math import gcd

    given, first = case["input"], case["layers"][0]
    if "arty" in case["id"]:
        return 8
    if first["op"] == "threshold":
        return 8
    word = given["bits"] * (first.get("simd") or given["channels"])
    beats = (
        given["channels"]
        * given.get("height", 1)
        * given.get("width", 1)
        // (first.get("simd") or given["channels"])
    )
    return gcd(word * beats, 64)


def _dsp(case: dict[str, Any], built: list[Unit], total: Resources) -> float:
    """As the tools count: hls4ml adds one a channel of a leaky ReLU, fpgaConvNet two a scaling unit and one a global pool."""
    if case["tool"] == "hls4ml":
        leaky = sum(u.layer.out_shape[0] for u in built if u.layer.op == "relu")
        return sum(u.p * u.q for u in built if u.layer.is_weighted) + leaky
    if case["tool"] == "fpgaconvnet":
        scalings = sum(2 for u in built if u.layer.is_weighted or u.layer.kind is LayerKind.GLOBAL_POOL)
        return total.dsp + scalings + sum(u.layer.kind is LayerKind.GLOBAL_POOL for u in built)
    return total.dsp
