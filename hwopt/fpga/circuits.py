"""Cycles and resources of single circuits, one function a formula.

Symbols: MH, MW rows and columns of a layer's weight matrix; P processing elements, Q SIMD lanes (PE and SIMD
in FINN); W, A weight and activation bits; B output bits.
"""

from __future__ import annotations

from math import ceil, log2, prod

from hwopt.core.fpga import FpgaFabric
from hwopt.fpga.design import Resources
from hwopt.layer_table import Layer

LUTRAM_DEPTH = 128  # memories up to here are cheaper in LUTs (FINN, embedded mode)
# Of the published FINN designs (docs/results/fpga.md): what a window generator with its queues takes beside its
# memories, and flip-flops by lookup tables, 0.93 to 1.58.
_WINDOW_LUT = 1000
FF_PER_LUT = 1.3


def matrix_cycles(mh: int, mw: int, p: int, q: int, pixels: int) -> int:
    """Cycles of a matrix-vector unit for one frame: (MH/P)·(MW/Q)·pixels.

    Reference:
        FINN, matrixvectoractivation.py get_exp_cycles; Umuroglu et al., FPGA 2017, section 4.
    """
    return (mh // p) * (mw // q) * pixels


def accumulator_bits(mw: int, w: int, a: int) -> int:
    """Bits that hold a sum of MW products: log2(MW) + W + A - 1.

    Reference:
        FINN-R, Blott et al., TRETS 2018, section 4.
    """
    return ceil(log2(max(mw, 2))) + w + a - 1


def packing(fabric: FpgaFabric, w: int, a: int) -> float:
    """Multiply-accumulates a DSP block does in a cycle at these widths; below 1, several blocks make one."""
    found = next((k.macs for k in fabric.dsp_packing if w <= k.weight_bits and a <= k.activation_bits), None)
    if found is not None:
        return float(found)
    wide = max(fabric.dsp_packing, key=lambda k: (k.weight_bits, k.activation_bits))
    return 1 / (ceil(w / wide.weight_bits) * ceil(a / wide.activation_bits))


def dsp_blocks(fabric: FpgaFabric, p: int, q: int, w: int, a: int, *, shared: bool = True) -> int:
    """DSP blocks of P × Q multipliers; products that share a block share an activation, so they lie along P.

    Args:
        shared: whether the rows share their inputs; those of a depthwise layer do not.

    Reference:
        FINN finn-rtllib/mvu: mvu_4sx4u.sv packs four, mvu_8sx8u_dsp48.sv two.
    """
    macs = packing(fabric, w, a)
    if macs > 1 and not shared:
        macs = 1.0
    return ceil(p / macs) * q if macs >= 1 else round(p * q / macs)


def product_luts(w: int, a: int) -> float:
    """LUTs of one product of a weight and an activation.

    Reference:
        FINN-R, TRETS 2018, as in FINN's matrixvectoractivation_hls.py: (2·ceil((W+A)/6) - 1)·(W+A).
    """
    return (2 * ceil((w + a) / 6) - 1) * (w + a)


def tree_luts(q: int, bits: int) -> float:
    """LUTs of an adder tree over Q numbers: a LUT a bit and adder, a level being a bit wider than the one below."""
    total, width, count = 0.0, bits, q
    while count > 1:
        adders = count // 2
        total += adders * (width + 1)
        count, width = count - adders, width + 1
    return total


def matrix_resources(
    fabric: FpgaFabric, layer: Layer, p: int, q: int, *, in_dsp: bool, weights_in: str
) -> Resources:
    """A matrix-vector unit with its weights on chip.

    Reference:
        The terms of FINN-R, TRETS 2018: products, adder trees, accumulators, and a unit's control (300 LUT).
        Requantization is a shift and a clamp on the accumulator, because scales are powers of two; FINN's
        threshold memories would cost 2^B comparators.
    """
    w, a = layer.weight_bits, layer.activation_bits
    acc = accumulator_bits(layer.columns, w, a)
    one_bit = w == 1 and a == 1  # the product is an XNOR inside the first level of a popcount
    product = 0.0 if in_dsp else 0.5 if one_bit else product_luts(w, a)
    adders = 0.0 if in_dsp else tree_luts(q, 1 if one_bit else w + a)
    lut = 300 + 1.1 * p * (q * product + adders + acc + 2 * acc)
    ff = FF_PER_LUT * lut
    words, bits = max(1, layer.rows * layer.columns // (p * q)), p * q * w
    memory = store(fabric, words, bits, weights_in)
    if layer.thresholds:
        memory += threshold_resources(fabric, layer, p, acc)
    dsp = dsp_blocks(fabric, p, q, w, a, shared=layer.groups == 1) if in_dsp else 0
    return Resources(lut=lut, ff=ff, dsp=dsp) + memory


def threshold_resources(fabric: FpgaFabric, layer: Layer, p: int, acc: int) -> Resources:
    """Requantization by comparing the accumulator with the least value of every code: a binary search of B steps.

    Reference:
        FINN finn-rtllib/thresholding: B stages, stage i with 2^i thresholds for each of MH/P rows.
    """
    b = min(layer.out_bits, 16)
    total = Resources(lut=1.1 * p * b * acc)
    for stage in range(b):
        words = max(1, layer.rows // p) * 2**stage
        total += store(fabric, words, p * acc, "lutram" if words <= LUTRAM_DEPTH else "bram")
    return total


def store(fabric: FpgaFabric, words: int, bits: int, kind: str) -> Resources:
    """A memory of ``words`` × ``bits`` in ``lutram``, ``bram`` or ``uram``.

    Reference:
        AMD UG574, distributed RAM: 64 bits a LUT; block shapes from the device's profile.
    """
    if kind == "lutram":
        return Resources(lut=bits * ceil(words / 64))
    if kind == "uram" and fabric.uram is not None:
        return Resources(uram=fabric.uram.needed(words, bits))
    return Resources(bram=fabric.bram.needed(words, bits))


def stores(fabric: FpgaFabric, words: int, bits: int) -> list[str]:
    """Where a memory may lie; small ones in LUTs."""
    if words <= LUTRAM_DEPTH:
        return ["lutram"]
    return ["bram", *(["uram"] if fabric.uram is not None and fabric.uram.count else [])]


def window_cycles(layer: Layer, lanes: int) -> int:
    """Cycles of the window generator: it takes in ``lanes`` channels a cycle, and gives whole windows.

    Reference:
        FINN rtl/convolutioninputgenerator_rtl.py, parallel window: a cycle an input value.
    """
    return prod(layer.in_shape[1:]) * max(1, layer.in_shape[0] // lanes)


def window_words(layer: Layer) -> int:
    """Pixels that a k×k window must keep: k - 1 rows and k pixels.

    Reference:
        FINN rtl/convolutioninputgenerator_rtl.py, buffer depth.
    """
    return (layer.reach[0] - 1) * layer.in_shape[-1] + layer.reach[1]


def window_resources(fabric: FpgaFabric, layer: Layer, lanes: int) -> Resources:
    """Line buffer of a k×k window: one memory a row that is kept.

    Reference:
        FINN, convolutioninputgenerator.py.
    """
    if prod(layer.kernel) == 1:
        return Resources()
    words = max(1, layer.in_shape[-1] * layer.in_shape[0] // lanes)
    bits, rows = lanes * layer.activation_bits, max(1, layer.reach[0] - 1)
    kind = "lutram" if words <= LUTRAM_DEPTH else "bram"
    one = store(fabric, words, bits, kind)
    return Resources(lut=_WINDOW_LUT + rows * one.lut, ff=FF_PER_LUT * _WINDOW_LUT, bram=rows * one.bram)


def fifo_resources(fabric: FpgaFabric, words: int, bits: int) -> Resources:
    """A queue.

    Reference:
        FINN streamingfifo.py: ceil(d/32)·ceil(w/2) + 2·ceil(log2 d) LUTs in shift registers; deep ones in
        block RAM.
    """
    if words <= 2:
        return Resources()
    if words <= 256:
        return Resources(lut=ceil(words / 32) * ceil(bits / 2) + 2 * ceil(log2(words)), ff=bits + 20)
    return Resources(lut=2 * ceil(log2(words)), ff=bits + 20, bram=fabric.bram.needed(words, bits))


def table_resources(fabric: FpgaFabric, layer: Layer, lanes: int) -> Resources:
    """A function of one value of A bits by a table of 2^A words in every lane.

    Reference:
        A table of 2^A × B bits takes ceil(2^A / 64)·B LUTs of six inputs (AMD UG574, distributed ROM); wider
        inputs go to block RAM, as hls4ml's activation tables do.
    """
    a, b = layer.activation_bits, min(layer.out_bits, 16)
    words = 2**a
    if words <= 1024:
        return Resources(lut=50 + lanes * b * ceil(words / 64), ff=lanes * b)
    return Resources(lut=50, ff=lanes * b, bram=lanes * fabric.bram.needed(words, b))
