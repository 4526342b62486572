"""The streaming layout: a circuit a layer, weights on chip, frames flow through.

Every layer becomes a unit with P processing elements and Q lanes. A folding is legal where P divides the rows
and Q the columns of the layer's matrix. hls4ml's reuse factor RF is the folding with P·Q = MH·MW / RF.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, prod

from hwopt.core.fpga import FpgaFabric
from hwopt.fpga import circuits
from hwopt.fpga.design import NAMES, Resources, Unit
from hwopt.layer_table import Layer, LayerKind

# Registers between the last input of a window and its output: generator, product, adder tree, accumulator,
# requantization, and the stream in between. A choice of ours; hls4ml's and FINN's reports show 10 to 30.
DEPTH = 16


def options(layer: Layer, fabric: FpgaFabric) -> list[Unit]:
    """Every legal folding of a layer that no other beats in cycles and in every resource."""
    if layer.is_weighted:
        return undominated(_matrix_options(layer, fabric))
    return undominated(_stream_options(layer, fabric))


def matrix_unit(layer: Layer, fabric: FpgaFabric, p: int, q: int, *, in_dsp: bool, weights_in: str) -> Unit:
    """The unit of one folding."""
    cycles = circuits.matrix_cycles(layer.rows, layer.columns, p, q, layer.pixels)
    resources = circuits.matrix_resources(fabric, layer, p, q, in_dsp=in_dsp, weights_in=weights_in)
    buffered = 0.0
    if prod(layer.kernel) > 1:
        lanes = p if layer.kind is LayerKind.DEPTHWISE else lanes_of(layer.in_shape[0], q)
        cycles = max(cycles, circuits.window_cycles(layer, lanes))
        resources += circuits.window_resources(fabric, layer, lanes)
        buffered = circuits.window_words(layer) * layer.in_shape[0] * layer.activation_bits / 8
    return Unit(
        layer=layer,
        cycles=cycles,
        p=p,
        q=q,
        depth=DEPTH,
        in_dsp=in_dsp,
        weights_in=weights_in,
        resources=resources,
        on_chip_bytes=layer.weights * layer.weight_bits / 8 + buffered,
    )


def lanes_of(channels: int, q: int) -> int:
    """Channels that the window generator takes in at once to feed Q columns."""
    return max(d for d in divisors(channels) if d <= q)


def _matrix_options(layer: Layer, fabric: FpgaFabric) -> list[Unit]:
    w = layer.weight_bits
    found = []
    for q in divisors(layer.columns):
        if q * w > fabric.max_stream_bits and q > 1:
            continue
        for p in divisors(layer.rows):
            words = max(1, layer.rows * layer.columns // (p * q))
            for weights_in in circuits.stores(fabric, words, p * q * w):
                for in_dsp in (False, True):
                    if in_dsp and not fabric.dsp:
                        continue
                    found.append(matrix_unit(layer, fabric, p, q, in_dsp=in_dsp, weights_in=weights_in))
    return found


def _stream_options(layer: Layer, fabric: FpgaFabric) -> list[Unit]:
    return [stream_unit(layer, fabric, lanes) for lanes in divisors(layer.out_shape[0])]


def stream_unit(layer: Layer, fabric: FpgaFabric, lanes: int) -> Unit:
    """Pooling, sums, joins and functions: one value a lane and cycle."""
    a = min(layer.activation_bits, 32)
    values = max(prod(layer.in_shape), prod(layer.out_shape))
    if layer.kind is LayerKind.CONCAT:
        values = prod(layer.out_shape)
    lut = 100 + lanes * a
    resources = Resources(lut=lut, ff=circuits.FF_PER_LUT * lut)
    buffered = 0.0
    if layer.kind is LayerKind.POOL:
        # A comparison or a sum a tap.
        resources += Resources(lut=lanes * a * prod(layer.kernel))
        resources += circuits.window_resources(fabric, layer, lanes)
        buffered = circuits.window_words(layer) * layer.in_shape[0] * a / 8
    elif layer.kind is LayerKind.GLOBAL_POOL:
        wide = a + max(1, prod(layer.in_shape[1:])).bit_length()
        words = max(1, layer.in_shape[0] // lanes)
        kind = "lutram" if words <= circuits.LUTRAM_DEPTH else "bram"
        # The sums of all channels, and a product by the reciprocal of the area.
        resources += circuits.store(fabric, words, lanes * wide, kind)
        resources += Resources(lut=lanes * (wide + circuits.product_luts(a, a)))
    elif layer.kind is LayerKind.MULTIPLY:
        resources += Resources(lut=lanes * circuits.product_luts(a, a))
    elif layer.kind is LayerKind.ACTIVATION:
        resources += circuits.table_resources(fabric, layer, lanes)
    elif layer.kind is LayerKind.UPSAMPLE:
        row = layer.in_shape[-1] * layer.in_shape[0] // lanes
        resources += circuits.fifo_resources(fabric, row, lanes * a)
        buffered = layer.in_shape[-1] * layer.in_shape[0] * a / 8
    elif layer.constant:
        resources = Resources()  # a stored summand goes into the accumulator before it
    return Unit(
        layer=layer,
        cycles=values / lanes,
        p=lanes,
        depth=0 if layer.constant else DEPTH / 4,
        resources=resources,
        on_chip_bytes=buffered,
    )


def undominated(units: Sequence[Unit]) -> list[Unit]:
    """Without those that another one equals or beats in cycles and in every resource."""
    rows = sorted(((u.cycles, *(getattr(u.resources, n) for n in NAMES)), i) for i, u in enumerate(units))
    kept: list[tuple[tuple[float, ...], int]] = []
    for row, index in rows:
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) for other, _ in kept):
            kept.append((row, index))
    return [units[index] for _, index in kept]


@lru_cache(maxsize=4096)
def divisors(n: int) -> tuple[int, ...]:
    """Of a number, rising."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(small + [n // d for d in reversed(small) if d * d != n])


def reuse_foldings(layer: Layer) -> list[int]:
    """Reuse factors that hls4ml takes: they divide n_in·n_out, and each multiplier keeps to whole rows.

    Reference:
        hls4ml fpga_backend.py, get_valid_reuse_factors: RF ≤ n_in with a multiplier count divisible by n_out,
        or RF a multiple of n_in.
    """
    n_in, n_out = layer.columns, layer.rows
    found = []
    for rf in divisors(n_in * n_out):
        multipliers = ceil(n_in * n_out / min(rf, n_in * n_out))
        if (rf < n_in and multipliers % n_out == 0) or rf % n_in == 0:
            found.append(rf)
    return found
