"""The overlay layout: one array that layers take turns on, weights and large tensors in off-chip memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import Final

from hwopt.core.fpga import Overlay
from hwopt.errors import StageFailedError
from hwopt.fpga.design import Unit
from hwopt.layer_table import Layer, LayerKind

_ON_ARRAY: Final = frozenset({LayerKind.CONV, LayerKind.DENSE})
_FREE: Final = frozenset({LayerKind.CONCAT})  # a choice of where results are written
_FUSED: Final = frozenset({"LeakyRelu", "PRelu", "HardSigmoid", "HardSwish"})  # into the layer before


def units_of(layers: Sequence[Layer], overlay: Overlay, cores: int = 1) -> list[Unit]:
    """What each layer's turn takes: the longer of its arithmetic and its traffic, and a start.

    Args:
        cores: how many share the off-chip memory.
    Raises:
        StageFailedError: a layer is wider than the array's arithmetic, or runs on no engine of the overlay.
    """
    _served(layers, overlay)
    share = overlay.bytes_per_cycle
    if overlay.ddr_gbs is not None:
        share = min(share, overlay.ddr_gbs * 1e3 / overlay.clock_mhz / cores)
    cycles_of = _CYCLES[overlay.kind]
    found: list[Unit] = []
    before: str | None = None
    for layer in layers:
        if layer.op in _FUSED or layer.constant:
            # It happens on the way out of the layer before, whose result is then this one's.
            before = layer.name if layer.inputs[:1] == (before,) else before
            continue
        if layer.kind in _FREE:
            continue
        compute = cycles_of(layer, overlay)
        moved = _traffic(layer, overlay, before)
        cycles = max(compute, moved / share) + overlay.layer_us * overlay.clock_mhz
        found.append(Unit(layer=layer, cycles=cycles, off_chip_bytes=moved))
        before = layer.name
    if not found:
        raise StageFailedError("no layer of the model takes the overlay's time", fix="give the whole network")
    return found


def _served(layers: Sequence[Layer], overlay: Overlay) -> None:
    wide = [
        layer
        for layer in layers
        if layer.is_weighted
        and (layer.weight_bits > overlay.weight_bits or layer.activation_bits > overlay.activation_bits)
    ]
    if wide:
        raise StageFailedError(
            f"{wide[0].name} has {wide[0].weight_bits}-bit weights and {wide[0].activation_bits}-bit inputs; "
            f"the overlay computes in {overlay.weight_bits} and {overlay.activation_bits} bits",
            fix="quantize to these widths, or choose the streaming layout",
        )
    lacking = [x for x in layers if x.kind is LayerKind.ACTIVATION and x.op not in _FUSED]
    if lacking:
        names = ", ".join(f"{x.op} {x.name}" for x in lacking[:4])
        raise StageFailedError(
            f"the overlay has no engine for {names}; they would run on the CPU beside it",
            fix="replace them by ReLU, leaky ReLU, hard sigmoid or hard swish, or choose the streaming layout",
        )


def _traffic(layer: Layer, overlay: Overlay, before: str | None) -> float:
    """Bytes of weights, input and output; an input that the layer before has just made stays if it fits a bank."""
    loaded = float(prod(layer.in_shape)) * (2 if len(layer.inputs) > 1 else 1)
    kept = layer.inputs[:1] == (before,) and loaded < overlay.bank_bytes
    return layer.weights + (0.0 if kept else loaded) + prod(layer.out_shape)


def _dpu_cycles(layer: Layer, overlay: Overlay) -> float:
    """Cycles on an array of pixels × input channels × output channels.

    Reference:
        AMD PG338, parallelism of the convolution architectures; depthwise convolution, pooling and sums run
        on a second engine of half the pixels. Few input channels are laid along the row of the window.
    """
    pixels, ins, outs = overlay.array
    channels = layer.in_shape[0] // layer.groups if layer.kind is LayerKind.CONV else layer.in_shape[0]
    (tall, wide), (rows, columns) = layer.kernel, layer.out_shape[1:] or (1, 1)
    if layer.kind in _ON_ARRAY:
        taps = tall * wide * ceil(channels / ins)
        if channels < ins:
            taps = tall * ceil(wide * channels / ins)
        # Vectors of a linear layer have no neighbours: one a cycle.
        across = columns if layer.kind is LayerKind.DENSE else ceil(columns / pixels)
        return float(rows * across * taps * ceil(layer.out_shape[0] / outs) * layer.groups)
    half = max(1, pixels // 2)
    groups = ceil(layer.out_shape[0] / ins)
    if layer.kind in {LayerKind.DEPTHWISE, LayerKind.POOL}:
        return float(rows * ceil(columns / half) * tall * wide * groups)
    if layer.kind is LayerKind.GLOBAL_POOL:
        return float(prod(layer.in_shape[1:]) * groups)
    if layer.kind is LayerKind.UPSAMPLE:
        return 0.0  # while its tensor is moved
    return float(rows * columns * groups)


def _systolic_cycles(layer: Layer, overlay: Overlay) -> float:
    """Cycles on an array of R × C multipliers; M pixels, K products a sum, N filters.

    Reference:
        Samajdar et al., SCALE-Sim, ISPASS 2020, equations of section 3: output stationary
        ceil(M/R)·ceil(N/C)·(R+C+K-2), weight stationary ceil(K/R)·ceil(N/C)·(2R+C+M-2); input stationary
        is weight stationary with M and N exchanged.
    """
    r, c = overlay.array
    m, k, n = layer.pixels, layer.columns, layer.rows
    if not layer.is_weighted:
        return float(ceil(max(prod(layer.in_shape), prod(layer.out_shape)) / c))
    times = 1
    if layer.kind is LayerKind.DEPTHWISE:
        n, times = 1, layer.rows  # one filter at a time: no input is shared
    if overlay.dataflow == "output":
        return float(times * ceil(m / r) * ceil(n / c) * (r + c + k - 2))
    if overlay.dataflow == "input":
        m, n = n, m
    return float(times * ceil(k / r) * ceil(n / c) * (2 * r + c + m - 2))


_CYCLES: Final[Mapping[str, Callable[[Layer, Overlay], float]]] = {
    "dpu": _dpu_cycles,
    "systolic": _systolic_cycles,
}


def host_us(layers: Sequence[Layer], overlay: Overlay) -> float:
    """Microseconds that the CPU beside the overlay takes for a frame's input and outputs."""
    read = {name for layer in layers for name in layer.inputs}
    outputs = sum(prod(layer.out_shape) for layer in layers if layer.name not in read)
    pixels = prod(layers[0].in_shape[1:])
    return (overlay.host_ns_per_pixel * pixels + overlay.host_ns_per_output * outputs) / 1e3
