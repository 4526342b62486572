"""From a table of layers to a design: one interface for all layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isfinite, prod
from operator import add
from pathlib import Path
from typing import Final

import onnx

from hwopt.core.fpga import Flow, FpgaFabric, Layout, Overlay, misplaced
from hwopt.errors import ConfigError, StageFailedError
from hwopt.fpga import bands, circuits, overlay
from hwopt.fpga.design import NAMES, NOTHING, Design, Resources, Unit, needs, uncounted
from hwopt.fpga.flows import Fold, units_of
from hwopt.fpga.search import Found, search
from hwopt.fpga.simulate import input_cycles, simulate
from hwopt.fpga.unrolled import unrolled
from hwopt.layer_table import Layer, LayerKind, foreign, layer_table, unsupported

_TRIES: Final = 4  # of a search and the queues that follow from it


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What kind of design is asked for.

    Raises:
        ConfigError: a number that is none, or settings of another layout.
    """

    layout: Layout = Layout.STREAMING
    flow: Flow = Flow.FINN
    frames_per_second: float | None = None  # least resources that reach it; None: least latency that fits
    folds: Mapping[str, Fold] = field(default_factory=dict)  # given foldings: nothing is searched
    overlay: str | None = None  # name of an overlay of the device; None is its first
    cores: int | None = None  # of the overlay; None is all it has
    clock_mhz: float | None = None

    def __post_init__(self) -> None:
        for name in ("frames_per_second", "cores", "clock_mhz"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}", fix="give a number above 0")
        wrong = misplaced(self.layout, self.flow, self.frames_per_second, self.overlay, self.cores)
        if wrong:
            raise ConfigError(wrong, fix="leave it out, or choose the layout that it belongs to")
        if self.folds and self.layout is not Layout.STREAMING:
            raise ConfigError(
                "a folding belongs to the streaming layout", fix="leave it out, or choose streaming"
            )
        if self.folds and self.frames_per_second is not None:
            raise ConfigError("a given folding leaves nothing to search", fix="leave out the frame rate")


def estimate(layers: Sequence[Layer], fabric: FpgaFabric, wish: Wish) -> tuple[Design, Found | None]:
    """A design, and for a streaming one what the search saw.

    Raises:
        StageFailedError: layers that are float, or have no circuit here, by name.
        ConfigError: the device has no such overlay, or a folding is illegal.
    """
    check(layers)
    usual = fabric.clock_mhz
    if wish.layout is Layout.OVERLAY:
        usual = overlay_of(fabric, wish.overlay)[1].clock_mhz
    if wish.clock_mhz is not None:
        fabric = fabric.model_copy(update={"clock_mhz": wish.clock_mhz})
    if wish.layout not in _LAYOUTS:
        raise ConfigError(
            f"the {wish.layout} layout is wired from the weights themselves",
            fix="give a quantized model, without --bits and --keep",
        )
    design, found = _LAYOUTS[wish.layout](layers, fabric, wish)
    return _at_clock(design, usual), found


def _at_clock(design: Design, usual: float) -> Design:
    """Above the device's usual clock nothing says that tools get there."""
    if design.clock_mhz <= usual:
        return design
    note = f"{design.clock_mhz:g} MHz is above the {usual:g} MHz that such designs reach on this device"
    return replace(design, unknown=(*design.unknown, "clock"), notes=(*design.notes, note))


def estimate_model(path: Path, fabric: FpgaFabric, wish: Wish) -> tuple[Design, Found | None]:
    """The same of a quantized ONNX file; the unrolled layout is wired from its weights."""
    if wish.layout is Layout.UNROLLED:
        return _at_clock(unrolled(path, fabric, wish.clock_mhz), fabric.clock_mhz), None
    return estimate(read_layers(path), fabric, wish)


def read_layers(path: Path) -> list[Layer]:
    """The table of an ONNX file, all of whose operators have a circuit.

    Raises:
        StageFailedError: they have not, by name; or a shape is not known.
    """
    model = onnx.load(path)
    _refuse(foreign(model))
    stored = {i.name for i in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise StageFailedError(
            f"the model has {len(inputs)} inputs: {_some(inputs)}; a design takes one stream",
            fix="concatenate them before the model",
        )
    return layer_table(path)


def check(layers: Sequence[Layer]) -> None:
    """Refuse what has no circuit: unknown operators, products of two activations, float layers."""
    strange = {op: list(names) for op, names in unsupported(layers).items()}
    for layer in layers:
        if layer.dynamic:
            strange.setdefault(f"{layer.op} of two activations", []).append(layer.name)
    _refuse(strange)
    if not layers:
        raise StageFailedError(
            "the model has no layer that computes", fix="give the network that is deployed"
        )
    tables = [x for x in layers if x.kind is LayerKind.ACTIVATION and x.activation_bits > 16]
    if tables:
        raise StageFailedError(
            f"{tables[0].op} {tables[0].name} takes floats, and a table holds codes of at most 16 bits",
            fix="put a quantizer before it",
        )
    floats = [x.name for x in layers if x.is_weighted and max(x.weight_bits, x.activation_bits) > 16]
    if floats:
        raise StageFailedError(
            f"{len(floats)} layers have float weights or inputs: {_some(floats)}; an FPGA computes with "
            "integers of 1 to 16 bits",
            fix="quantize the model for this target first, or say what it would be quantized to: --bits W:A",
        )


def _refuse(strange: Mapping[str, Sequence[str]]) -> None:
    if strange:
        raise StageFailedError(
            "no circuit for " + "; ".join(f"{op} ({_some(names)})" for op, names in sorted(strange.items())),
            fix="replace these operators, cut the model before them, or choose another target",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def with_bits(layers: Sequence[Layer], weight_bits: int, activation_bits: int) -> list[Layer]:
    """The same network at other widths: what it would cost, not how well it would do.

    Raises:
        ConfigError: widths outside 1 to 16.
    """
    for name, bits in (("weight", weight_bits), ("activation", activation_bits)):
        if not 1 <= bits <= 16:
            raise ConfigError(f"{bits} {name} bits are out of range", fix="choose 1 to 16")
    return [
        replace(
            layer,
            weight_bits=weight_bits if layer.is_weighted else layer.weight_bits,
            activation_bits=activation_bits,
            out_bits=activation_bits,
        )
        for layer in layers
    ]


def narrowed(layers: Sequence[Layer], share: float, multiple: int = 8) -> list[Layer]:
    """The same network with a share of its inner channels, rounded up to a multiple: what pruning would leave.

    Raises:
        ConfigError: a grouped convolution, whose groups would have to be cut too.
    """
    read = {name for layer in layers for name in layer.inputs}
    kept: dict[str, int] = {}  # channels that a layer gives
    found = []
    for layer in layers:
        if layer.kind is LayerKind.CONV and layer.groups > 1:
            raise ConfigError(
                f"{layer.name} has {layer.groups} groups, and --keep cuts whole networks",
                fix="prune the network itself, and estimate what is left",
            )
        sources = [kept[name] for name in layer.inputs if name in kept]
        whole = layer.in_shape[0]
        ins = sources[0] if sources else whole
        if layer.kind is LayerKind.DENSE and sources:
            before = next(x for x in layers if x.name == next(n for n in layer.inputs if n in kept))
            ins = whole * sources[0] // before.out_shape[0]  # a plane that was flattened
        outs = ins
        if layer.kind in {LayerKind.CONV, LayerKind.DENSE}:
            width = layer.out_shape[0]
            fewer = max(1, -(-int(width * share + 0.5) // multiple) * multiple)
            outs = width if layer.name not in read else min(width, fewer)
        elif layer.kind is LayerKind.CONCAT:
            outs = sum(sources) if len(sources) == len(layer.inputs) else layer.out_shape[0]
        groups = ins if layer.kind in {LayerKind.DEPTHWISE, LayerKind.POOL} else 1
        weights = prod(layer.kernel) * ins // groups * outs if layer.is_weighted else 0
        kept[layer.name] = outs
        found.append(
            replace(
                layer,
                in_shape=(ins, *layer.in_shape[1:]),
                out_shape=(outs, *layer.out_shape[1:]),
                groups=groups,
                weights=weights,
                macs=weights * prod(layer.out_shape[1:]),
            )
        )
    return found


def _streaming(layers: Sequence[Layer], fabric: FpgaFabric, wish: Wish) -> tuple[Design, Found | None]:
    found: Found | None = None
    if wish.folds:
        unknown = sorted(set(wish.folds) - {layer.name for layer in layers})
        if unknown:
            raise ConfigError(
                f"the folding names {_some(unknown)}, which the model has not",
                fix=f"its layers are {_some([layer.name for layer in layers])}",
            )
        units = units_of(layers, fabric, wish.flow, wish.folds)
    else:
        found = _searched(layers, fabric, wish)
        units = list(found.units)
    flow = simulate(units, fabric.input_bits)
    units = _bordered(units)
    total = reduce(add, (u.resources for u in units), _queues(units, flow.fifo_words, fabric))
    interval = max(input_cycles(units, fabric.input_bits), *(u.cycles for u in units))
    reached = fabric.clock_mhz * 1e6 / interval
    missed = ""
    if wish.frames_per_second and reached < wish.frames_per_second * (1 - 1e-9):
        missed = (
            f"{reached:,.0f} frames a second at most, {wish.frames_per_second:,.0f} were asked for"
            f" (weights come in streams of {fabric.max_stream_bits} bits a processing element)"
        )
    deep = [
        u.layer.name
        for u in units
        if wish.flow is Flow.HLS4ML and u.layer.is_weighted and u.reuse > u.layer.columns
    ]
    notes = (
        (
            f"{_some(deep)}: reused more often than there are inputs; where the compiler cannot pipeline that, "
            "cycles grow by half (hls4ml#446: 1,523 for 1,024)",
        )
        if deep
        else ()
    )
    at_rf_1 = wish.flow is Flow.HLS4ML and any(u.reuse == 1 for u in units if u.layer.is_weighted)
    flow_name = "hls4ml at RF 1" if at_rf_1 else str(wish.flow)
    design = Design(
        layout=Layout.STREAMING,
        fabric=fabric,
        clock_mhz=fabric.clock_mhz,
        units=tuple(units),
        interval=interval,
        cycles=bands.LATENCY.around(flow.cycles),
        needs=needs(total, fabric, flow_name),
        fifo_words=flow.fifo_words,
        missed=missed,
        unknown=uncounted(total, fabric),
        notes=notes,
    )
    return design, found


def _bordered(units: Sequence[Unit]) -> list[Unit]:
    """With the bytes of the frame and of its results, which cross to off-chip memory."""
    read = {name for unit in units for name in unit.layer.inputs}
    found = []
    for unit in units:
        layer, moved = unit.layer, 0.0
        if unit is units[0]:
            moved += prod(layer.in_shape) * min(layer.activation_bits, 32) / 8
        if layer.name not in read:
            moved += prod(layer.out_shape) * min(layer.out_bits, 32) / 8
        found.append(replace(unit, off_chip_bytes=moved) if moved else unit)
    return found


def _searched(layers: Sequence[Layer], fabric: FpgaFabric, wish: Wish) -> Found:
    """A folding that fits together with the queues that it needs, which are known only when it is."""
    asked = fabric.clock_mhz * 1e6 / wish.frames_per_second if wish.frames_per_second else None
    taken = NOTHING
    for tried in range(_TRIES):
        found = search(layers, fabric, asked, wish.flow, taken)
        words = simulate(found.units, fabric.input_bits).fifo_words
        queues = _queues(found.units, words, fabric)
        alone = reduce(add, (u.resources for u in found.units), NOTHING)
        hopeless = not _fits(alone, fabric, wish.flow)  # without any queue
        if not words or hopeless or _fits(alone + queues, fabric, wish.flow):
            break
        # A little more each time: other foldings need other queues.
        room = 1 + 0.25 * tried
        taken = Resources(**{n: max(getattr(taken, n), room * amount) for n, amount in queues.items()})
    return found if taken is NOTHING else replace(found, exact=False)


def _fits(total: Resources, fabric: FpgaFabric, flow: Flow) -> bool:
    return all(need.fits for need in needs(total, fabric, flow).values())


def _queues(units: Sequence[Unit], words: Mapping[str, int], fabric: FpgaFabric) -> Resources:
    """FIFOs of the sides that wait at a join."""
    by_name = {u.layer.name: u for u in units}
    total = NOTHING
    for name, pixels in words.items():
        layer, lanes = by_name[name].layer, by_name[name].p
        bits = min(layer.activation_bits, 32)
        total += circuits.fifo_resources(fabric, pixels * layer.out_shape[0] // lanes, lanes * bits)
    return total


def overlay_of(fabric: FpgaFabric, name: str | None) -> tuple[str, Overlay]:
    """An overlay of the device by name, or its first.

    Raises:
        ConfigError: there is none of that name, or none at all.
    """
    if not fabric.overlays:
        raise ConfigError(
            f"the profile of {fabric.part} describes no overlay",
            fix="choose the streaming layout, or add a section fpga.overlays",
        )
    chosen = name or next(iter(fabric.overlays))
    if chosen not in fabric.overlays:
        raise ConfigError(f"no overlay {chosen!r}", fix=f"choose one of {', '.join(fabric.overlays)}")
    return chosen, fabric.overlays[chosen]


def _overlay(layers: Sequence[Layer], fabric: FpgaFabric, wish: Wish) -> tuple[Design, Found | None]:
    name, array = overlay_of(fabric, wish.overlay)
    cores = wish.cores or array.cores
    if wish.clock_mhz is not None:
        array = array.model_copy(update={"clock_mhz": wish.clock_mhz})
    alone, together = overlay.units_of(layers, array), overlay.units_of(layers, array, cores)
    host = overlay.host_us(layers, array) * array.clock_mhz
    one = sum(u.cycles for u in alone)
    interval = sum(u.cycles for u in together) / cores
    taken = {n: getattr(array, n) for n in NAMES}
    unknown = [str(n) for n, amount in taken.items() if amount is None]
    if cores > array.cores:
        unknown.append("cores")
    total = Resources(**{n: float(amount or 0) * cores for n, amount in taken.items()})
    exact = {n: need for n, need in needs(total, fabric, "overlay").items() if n not in unknown}
    # A core that its maker ships was placed; what limits is the device, not the share that a search may plan.
    whole = {n: replace(need, usable=need.available) for n, need in exact.items()}
    notes = (f"overlay {name}, {cores} of {array.cores} cores",) + (
        (f"not known of this overlay: {', '.join(unknown)}",) if unknown else ()
    )
    missed = ""
    reached = array.clock_mhz * 1e6 / interval
    if wish.frames_per_second and reached < wish.frames_per_second:
        missed = f"{reached:,.0f} frames a second at most, {wish.frames_per_second:,.0f} were asked for"
    return (
        Design(
            layout=Layout.OVERLAY,
            fabric=fabric,
            clock_mhz=array.clock_mhz,
            units=tuple(alone),
            interval=interval,
            cycles=bands.OVERLAY.around(one + host),
            needs=whole,
            notes=notes,
            missed=missed,
            unknown=tuple(unknown),
        ),
        None,
    )


_LAYOUTS: Final[
    Mapping[Layout, Callable[[Sequence[Layer], FpgaFabric, Wish], tuple[Design, Found | None]]]
] = {
    Layout.STREAMING: _streaming,
    Layout.OVERLAY: _overlay,
}
