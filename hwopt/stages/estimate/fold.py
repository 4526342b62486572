"""Choose a folding: the fastest pipeline whose upper resource band still fits.

Every layer becomes a hardware unit with P processing elements and Q lanes. A folding is legal where P divides
the rows and Q the columns of the layer's matrix. The design's initiation interval is that of its slowest
layer, so all layers are relaxed to the cheapest folding that keeps up with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

from hwopt.core.hardware import FpgaFabric
from hwopt.layer_table import Layer, LayerKind
from hwopt.numerics import fpga
from hwopt.numerics.fpga import Resources

# Share by which a placed design may exceed the formula. Five placed BNN-PYNQ designs lie -53 … +69 % from
# FINN's LUT formula; this band holds for most of them, not all. DSP and BRAM follow from the mapping.
LUT_BAND = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """One layer's unit."""

    layer: Layer
    p: int
    q: int
    in_dsp: bool
    cycles: int  # for one frame
    resources: Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """All units; ``short`` names what is lacking where nothing fits."""

    foldings: tuple[Folding, ...]
    interval: int  # cycles between frames
    total: Resources
    short: tuple[str, ...] = ()


def foldings(layer: Layer, fabric: FpgaFabric) -> list[Folding]:
    """Every legal folding of a layer, in LUTs and in DSPs."""
    if layer.kind in {LayerKind.CONV, LayerKind.DENSE, LayerKind.DEPTHWISE}:
        return _matrix_foldings(layer, fabric)
    return _stream_foldings(layer)


def _matrix_foldings(layer: Layer, fabric: FpgaFabric) -> list[Folding]:
    depthwise = layer.kind is LayerKind.DEPTHWISE
    rows, columns = layer.rows, layer.columns
    w, a = layer.weight_bits, layer.activation_bits
    packing = next((k for k in fabric.dsp_packing if w <= k.weight_bits and a <= k.activation_bits), None)
    result = []
    for q in _divisors(columns):
        if q * w > fabric.max_stream_bits and q > 1:
            continue
        for p in _divisors(rows):
            cycles = fpga.matrix_cycles(rows, columns, p, q, layer.pixels)
            if layer.kind is not LayerKind.DENSE and max(layer.kernel) > 1:
                lanes = p if depthwise else max(d for d in _divisors(layer.in_shape[0]) if d <= q)
                cycles = max(cycles, _window_cycles(layer, lanes))
                buffer = fpga.window_resources(
                    layer.in_shape[-1], layer.in_shape[0], max(layer.kernel), a, lanes
                )
            else:
                buffer = Resources()
            for macs_per_dsp in (None, packing.macs if packing else None):
                if macs_per_dsp is None and packing is not None and w + a > 16:
                    continue  # wide products in LUTs are never the better choice
                unit = fpga.matrix_resources(rows, columns, p, q, w, a, macs_per_dsp=macs_per_dsp)
                result.append(
                    Folding(
                        layer=layer,
                        p=p,
                        q=q,
                        in_dsp=macs_per_dsp is not None,
                        cycles=cycles,
                        resources=unit + buffer,
                    )
                )
    return result


def _window_cycles(layer: Layer, lanes: int) -> int:
    """With every window position in parallel, a generator costs its input stream and no more."""
    channels = max(1, layer.in_shape[0] // lanes)
    height, width = layer.in_shape[1], layer.in_shape[-1]
    return height * width * channels


def _stream_foldings(layer: Layer) -> list[Folding]:
    """Pooling and addition: one element a lane and cycle."""
    elements = max(_size(layer.in_shape), _size(layer.out_shape))
    result = []
    for lanes in _divisors(layer.in_shape[0]):
        lut = 100 + lanes * layer.activation_bits * 4
        buffer = Resources()
        if layer.kind is LayerKind.POOL:
            buffer = fpga.window_resources(
                layer.in_shape[-1], layer.in_shape[0], max(layer.kernel), layer.activation_bits, lanes
            )
        result.append(
            Folding(
                layer=layer,
                p=lanes,
                q=1,
                in_dsp=False,
                cycles=elements // lanes,
                resources=Resources(lut) + buffer,
            )
        )
    return result


def search(layers: Sequence[Layer], fabric: FpgaFabric) -> Design:
    """The least interval that fits; where none does, the smallest design with what it lacks."""
    options = [foldings(layer, fabric) for layer in layers]
    slowest = [min(o.cycles for o in choices) for choices in options]
    # Only intervals that some layer can reach exactly are worth a look.
    intervals = sorted({o.cycles for choices in options for o in choices if o.cycles >= max(slowest)})
    low, high = 0, len(intervals) - 1
    best: Design | None = None
    while low <= high:  # fitting is monotonic: a longer interval never needs more
        middle = (low + high) // 2
        design = _at_interval(options, intervals[middle], fabric)
        if not design.short:
            best, high = design, middle - 1
        else:
            low = middle + 1
    return best if best is not None else _at_interval(options, intervals[-1], fabric)


def _at_interval(options: list[list[Folding]], interval: int, fabric: FpgaFabric) -> Design:
    chosen = [
        min((o for o in choices if o.cycles <= interval), key=lambda o: _price(o.resources, fabric))
        for choices in options
    ]
    chosen = _use_free_dsps(options, chosen, interval, fabric)
    total = reduce(add, (c.resources for c in chosen), Resources())
    return Design(
        foldings=tuple(chosen),
        interval=max(c.cycles for c in chosen),
        total=total,
        short=shortage(total, fabric),
    )


def _use_free_dsps(
    options: list[list[Folding]], chosen: list[Folding], interval: int, fabric: FpgaFabric
) -> list[Folding]:
    """If the LUTs run out while DSP blocks are left, or the reverse, move layers over, largest first."""
    result = list(chosen)
    for prefer_dsp in (True, False):
        order = sorted(range(len(result)), key=lambda i: -result[i].resources.lut)
        for index in order:
            total = reduce(add, (c.resources for c in result), Resources())
            short = shortage(total, fabric)
            lacking = (
                any(text.startswith("lut") for text in short)
                if prefer_dsp
                else any(text.startswith("dsp") for text in short)
            )
            if not lacking:
                break
            others = [o for o in options[index] if o.cycles <= interval and o.in_dsp is prefer_dsp]
            if others:
                result[index] = min(others, key=lambda o: o.resources.lut if prefer_dsp else o.resources.dsp)
    return result


def usable(fabric: FpgaFabric) -> dict[str, float]:
    """What a design may occupy."""
    return {
        "lut": fabric.lut * fabric.usable.get("lut", 1.0),
        "dsp": fabric.dsp * fabric.usable.get("dsp", 1.0),
        "bram18": fabric.bram18 * fabric.usable.get("bram18", 1.0),
    }


def shortage(total: Resources, fabric: FpgaFabric) -> tuple[str, ...]:
    """What the upper end of the band lacks, in words; empty where the design fits."""
    upper = replace(total, lut=total.lut * (1 + LUT_BAND))
    limits = usable(fabric)
    need = {"lut": upper.lut, "dsp": upper.dsp, "bram18": upper.bram18}
    return tuple(
        f"{name}: needs {need[name]:,.0f}, {limits[name]:,.0f} are usable"
        for name in need
        if need[name] > limits[name]
    )


def _price(resources: Resources, fabric: FpgaFabric) -> float:
    limits = usable(fabric)
    return (
        resources.lut * (1 + LUT_BAND) / limits["lut"]
        + resources.dsp / limits["dsp"]
        + resources.bram18 / limits["bram18"]
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _size(shape: tuple[int, ...]) -> int:
    return reduce(lambda x, y: x * y, shape, 1)
