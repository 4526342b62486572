"""Toolflows that generate streaming designs, each with its own rules for a unit.

All of them are foldings of the same matrices; they differ in what a pixel costs beside its products, in where
multipliers go, and in how weights are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2, prod

from hwopt.core.fpga import Flow, FpgaFabric
from hwopt.errors import ConfigError
from hwopt.fpga import circuits, streaming
from hwopt.fpga.design import Resources, Unit
from hwopt.layer_table import Layer, LayerKind

_OVERHEAD = (
    4  # cycles around the reuse loop of an hls4ml convolution with a line buffer, and of a dense layer
)
_SKIPPED = 2  # cycles of a pixel that completes no window
_DSP_BITS = 9  # narrower weights are multiplied in LUTs
# Geometric means over the published designs of each flow (docs/results/fpga.md): LUTs by the formula's, and
# flip-flops by LUTs.
_HLS4ML_LUT, _HLS4ML_FF = 1.05, 0.85
_FPGACONVNET_LUT, _FPGACONVNET_FF = 1.8, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """How one layer is folded, in the words of its flow; what is None is left to the flow."""

    pe: int | None = None  # FINN
    simd: int | None = None
    reuse: int | None = None  # hls4ml
    coarse_in: int = 1  # fpgaConvNet
    coarse_out: int = 1
    coarse_group: int = 1
    fine: int = 1
    in_dsp: bool | None = None
    lanes: int = 1  # of layers without a matrix


def folded(layer: Layer, fabric: FpgaFabric, flow: Flow, fold: Fold, pixels_in: int = 1) -> Unit:
    """The unit of a layer that is folded as told.

    Args:
        pixels_in: words in which the layer's input arrives; hls4ml's dense layers read them one by one.
    Raises:
        ConfigError: the folding is none of this layer.
    """
    if not layer.is_weighted:
        return streaming.stream_unit(layer, fabric, _divides("lanes", fold.lanes, layer.out_shape[0], layer))
    _of_flow(layer, flow, fold)
    if flow is Flow.FINN:
        p = _divides("pe", fold.pe or 1, layer.rows, layer)
        q = _divides("simd", fold.simd or 1, layer.columns, layer)
        words = max(1, layer.rows * layer.columns // (p * q))
        kind = circuits.stores(fabric, words, p * q * layer.weight_bits)[0]
        return streaming.matrix_unit(layer, fabric, p, q, in_dsp=bool(fold.in_dsp), weights_in=kind)
    if flow is Flow.HLS4ML:
        return hls4ml_unit(layer, fabric, closest_reuse(layer, fold.reuse or 1), pixels_in)
    return _fpgaconvnet_unit(layer, fabric, fold)


_KEYS = {
    Flow.FINN: {"pe", "simd", "in_dsp"},
    Flow.HLS4ML: {"reuse"},
    Flow.FPGACONVNET: {"coarse_in", "coarse_out", "coarse_group", "fine", "in_dsp"},
}


def words(flow: Flow) -> set[str]:
    """Keys of a folding that a flow knows."""
    return _KEYS[flow]


def _of_flow(layer: Layer, flow: Flow, fold: Fold) -> None:
    """Refuse a folding in another flow's words, and numbers below 1."""
    default = Fold()
    given = [name for name in Fold.__dataclass_fields__ if getattr(fold, name) != getattr(default, name)]
    foreign = [name for name in given if name not in words(flow)]
    if foreign:
        raise ConfigError(
            f"the folding of {layer.name} has {foreign[0]}, which {flow} does not know",
            fix=f"its words are {', '.join(sorted(_KEYS[flow]))}",
        )
    for name in given:
        value = getattr(fold, name)
        if not isinstance(value, bool) and value < 1:
            raise ConfigError(f"{name}: {value} of {layer.name} is below 1", fix="write 1 or more")


def _divides(name: str, value: int, whole: int, layer: Layer) -> int:
    if value < 1 or whole % value:
        raise ConfigError(
            f"{name}: {value} does not divide the {whole} of {layer.name}",
            fix=f"choose one of {', '.join(map(str, streaming.divisors(whole)))}",
        )
    return value


def closest_reuse(layer: Layer, asked: int) -> int:
    """The legal reuse factor nearest to what is asked, the smaller of two.

    Reference:
        hls4ml fpga_backend.py, get_closest_reuse_factor.
    """
    return min(streaming.reuse_foldings(layer), key=lambda rf: (abs(rf - asked), rf))


def hls4ml_unit(
    layer: Layer,
    fabric: FpgaFabric,
    reuse: int,
    pixels_in: int = 1,
    *,
    worst: bool = False,
    overhead: int = _OVERHEAD,
    parallel: bool = False,
) -> Unit:
    """A layer of hls4ml in io_stream, Resource strategy (Latency where the reuse factor is 1).

    Args:
        pixels_in: words in which a dense layer's input arrives: one after a dense layer, a pixel each after a
            convolution.
        worst: cycles as the report of the C synthesis gives them: as if every padded pixel completed a window.
        overhead: 5 for convolutions by kernel windows instead of line buffers.
        parallel: io_parallel, where a pixel follows the other every RF cycles.
    Reference:
        nnet_dense_resource.h: ceil(n_in·n_out/RF) multipliers; nnet_dense_stream.h: reads, computes and writes in
        turn; nnet_conv2d_stream.h: RF + 4 cycles a window, 2 for a padded pixel without one, which the RTL
        co-simulations of Keb-L/hls4ml-data confirm to the cycle; weights of Resource layers take
        ceil(bits·n_in·n_out/(RF·36)) block RAMs (vivado_objectives.py); below 9 bits no DSP.
    """
    n_in, n_out = layer.columns, layer.rows
    multipliers = ceil(n_in * n_out / reuse)
    if parallel:
        cycles = layer.pixels * reuse
    elif layer.kind is LayerKind.DENSE:
        cycles = layer.pixels * (reuse + overhead) + pixels_in
    else:
        padded = _padded(layer)
        windows = padded if worst else layer.pixels
        cycles = windows * (reuse + overhead) + (padded - windows) * _SKIPPED
    w, a = layer.weight_bits, layer.activation_bits
    wide = w >= _DSP_BITS
    per_product = ceil(1 / circuits.packing(fabric, w, a)) if circuits.packing(fabric, w, a) < 1 else 1
    acc = circuits.accumulator_bits(n_in, w, a)
    products = 0.0 if wide else multipliers * circuits.product_luts(w, a)
    adders = multipliers * (w + a)
    lut = _HLS4ML_LUT * (300 + products + adders + n_out * 2 * acc)
    resources = Resources(
        lut=lut,
        ff=_HLS4ML_FF * lut,
        dsp=multipliers * per_product if wide else 0,
        bram=ceil(w * n_in * n_out / (reuse * 36)) if reuse > 1 else 0,
    )
    if prod(layer.kernel) > 1 and not parallel:
        resources += circuits.window_resources(fabric, layer, layer.in_shape[0])
    p = max(1, min(n_out, multipliers))
    return Unit(
        layer=layer,
        cycles=cycles,
        p=p,
        q=max(1, multipliers // p),
        depth=streaming.DEPTH,
        in_dsp=wide,
        weights_in="bram" if reuse > 1 else "logic",
        resources=resources,
        on_chip_bytes=layer.weights * w / 8,
    )


def _padded(layer: Layer) -> int:
    (rows, columns), before, after = layer.in_shape[1:], layer.padding, layer.pad_after
    return int((rows + before[0] + after[0]) * (columns + before[1] + after[1]))


def parallel_latency(layers: Sequence[Layer], registers: int = 0) -> int:
    """Cycles of an hls4ml network at RF 1 with parallel inputs: a multiplication and an adder tree a layer.

    Args:
        registers: that the compiler puts between two blocks: none in Vivado HLS, one in Vitis HLS.
    Reference:
        Duarte et al., JINST 2018, section 4: the latency grows with the logarithm of the inputs.
    """
    found = registers
    for layer in layers:
        if layer.is_weighted:
            found += 2 + ceil(log2(max(2, layer.columns)))
        elif layer.op.lower() == "softmax":  # the greatest, two tables, a sum, a product
            found += 2 * ceil(log2(max(2, layer.out_shape[0]))) + 5
        found += registers
    return found


def _fpgaconvnet_unit(layer: Layer, fabric: FpgaFabric, fold: Fold) -> Unit:
    """A layer of fpgaConvNet: MACs / (coarse_in·coarse_out·coarse_group·fine) cycles, a value a lane at its ends.

    Reference:
        Venieris and Bouganis, FCCM 2016, section III; fpgaconvnet-model, ConvolutionLayer.
    """
    lanes = fold.coarse_in * fold.coarse_group
    multipliers = lanes * fold.coarse_out * fold.fine
    macs = layer.rows * layer.columns * layer.pixels
    # Every output passes a scaling unit that takes one value a cycle.
    cycles = max(macs / multipliers, prod(layer.out_shape), prod(layer.in_shape) / lanes)
    in_dsp = fold.in_dsp is not False
    q = fold.coarse_in * fold.fine
    p = multipliers // q
    words = max(1, layer.rows * layer.columns // multipliers)
    kind = circuits.stores(fabric, words, multipliers * layer.weight_bits)[0]
    resources = circuits.matrix_resources(fabric, layer, p, q, in_dsp=in_dsp, weights_in=kind)
    lut = _FPGACONVNET_LUT * resources.lut
    # Its multipliers are not packed.
    resources = replace(
        resources, lut=lut, ff=_FPGACONVNET_FF * lut, dsp=float(multipliers) if in_dsp else 0.0
    )
    if prod(layer.kernel) > 1:
        resources += circuits.window_resources(fabric, layer, min(lanes, layer.in_shape[0]))
    return Unit(
        layer=layer, cycles=cycles, p=p, q=q, depth=streaming.DEPTH, in_dsp=in_dsp, weights_in=kind,
        resources=resources, on_chip_bytes=layer.weights * layer.weight_bits / 8,
    )  # fmt: skip


def words_in(layers: Sequence[Layer]) -> dict[str, int]:
    """Words in which the input of each layer arrives: a pixel each."""
    pixels = {layer.name: prod(layer.out_shape[1:]) for layer in layers}
    first = prod(layers[0].in_shape[1:])
    return {layer.name: pixels.get(layer.inputs[0] if layer.inputs else "", first) for layer in layers}


def options(layer: Layer, fabric: FpgaFabric, flow: Flow, words: int = 1) -> list[Unit]:
    """Every legal folding of a layer in a flow that no other beats.

    Raises:
        ConfigError: the flow's folding is not searched.
    """
    if flow is Flow.FINN or not layer.is_weighted:
        return streaming.options(layer, fabric)
    if flow is Flow.HLS4ML:
        units = [hls4ml_unit(layer, fabric, rf, words) for rf in streaming.reuse_foldings(layer)]
        return streaming.undominated(units)
    raise ConfigError(f"no folding is searched for {flow}", fix="choose finn or hls4ml")


def units_of(
    layers: Sequence[Layer], fabric: FpgaFabric, flow: Flow, folds: Mapping[str, Fold]
) -> list[Unit]:
    """The units of a network that is folded as told; layers that are not named take one lane."""
    arriving = words_in(layers)
    return [folded(x, fabric, flow, folds.get(x.name, Fold()), arriving[x.name]) for x in layers]
