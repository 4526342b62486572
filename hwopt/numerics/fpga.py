"""Cycles and resources of a folded dataflow design, one function a formula.

Symbols: MH, MW rows and columns of a layer's weight matrix; P processing elements, Q SIMD lanes (PE and SIMD
in FINN); W, A weight and activation bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a design occupies."""

    lut: float = 0.0
    dsp: float = 0.0
    bram18: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.lut + other.lut, self.dsp + other.dsp, self.bram18 + other.bram18)


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


def bram18_blocks(depth: int, width: int) -> int:
    """18-kbit block RAMs of a memory by the aspect ratios of the primitive.

    Reference:
        FINN, matrixvectoractivation.py bram_estimation; AMD UG573, table 1-10 (aspect ratios).
    """
    if width == 1:
        return ceil(depth / 16384)
    if width == 2:
        return ceil(depth / 8192)
    if width <= 4:
        return ceil(depth / 4096) * ceil(width / 4)
    if width <= 9:
        return ceil(depth / 2048) * ceil(width / 9)
    if width <= 18 or depth > 512:
        return ceil(depth / 1024) * ceil(width / 18)
    return ceil(depth / 512) * ceil(width / 36)


LUTRAM_DEPTH = 128  # memories up to here are cheaper in LUTs (FINN, embedded mode)


def matrix_resources(
    mh: int, mw: int, p: int, q: int, w: int, a: int, *, macs_per_dsp: int | None
) -> Resources:
    """Resources of a matrix-vector unit with its weights on chip.

    Args:
        macs_per_dsp: multiply-accumulates a DSP block does in a cycle; None builds the multipliers of LUTs.
    Reference:
        FINN-R, Blott et al., TRETS 2018, as in FINN's matrixvectoractivation_hls.py:
        300 + 1.1·P·(mult + adder + acc). Requantization is a shift and a clamp on the accumulator (2·acc per
        element), because scales are powers of two; FINN's threshold memories would cost 2^B comparators.
    """
    acc = accumulator_bits(mw, w, a)
    mult = 0.0 if macs_per_dsp else q * (2 * ceil((w + a) / 6) - 1) * (w + a)
    adder = (w + a) * (2 * q - 1)
    lut = 300 + 1.1 * p * (mult + adder + acc + 2 * acc)
    depth, width = max(1, mw * mh // (p * q)), p * q * w
    bram = 0.0
    if depth <= LUTRAM_DEPTH:
        lut += p * q * w * ceil(depth / 64)
    else:
        bram = bram18_blocks(depth, width)
    dsp = ceil(p / macs_per_dsp) * q if macs_per_dsp else 0  # packed along the processing elements
    return Resources(lut, dsp, bram)


def window_resources(width: int, channels: int, kernel: int, a: int, q: int) -> Resources:
    """Line buffer of a k×k window: k rows of W·C/Q words of Q·A bits.

    Reference:
        FINN, convolutioninputgenerator.py (k rows; the control logic is FINN's 300 LUT constant).
    """
    if kernel == 1:
        return Resources()
    depth, bits = max(1, kernel * width * channels // q), q * a
    if depth <= LUTRAM_DEPTH:
        return Resources(300 + bits * ceil(depth / 64))
    return Resources(300, 0, bram18_blocks(depth, bits))


def stream_times(arrival: Float, needed: npt.NDArray[np.int64], interval: float) -> Float:
    """When each output pixel leaves a pipelined layer, in cycles.

    ``out_k = max(out_{k-1}, arrival[needed_k]) + interval``: a layer starts a pixel when the last input pixel
    of its window is there, and spends ``interval`` cycles on each.

    Args:
        arrival: when each input pixel arrives, shape (inputs,), rising.
        needed: for each output pixel the index of the last input pixel it needs, shape (outputs,).
        interval: cycles a pixel.
    Returns:
        shape (outputs,).
    Reference:
        The recurrence of an event simulation in closed form: with k·interval taken off, it is a running
        maximum.
    """
    steps = np.arange(len(needed), dtype=np.float64) * interval
    result: Float = np.maximum.accumulate(arrival[needed] - steps) + steps + interval
    return result


def last_needed(
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> npt.NDArray[np.int64]:
    """For each output pixel in raster order, the raster index of the last input pixel of its window."""
    rows = np.minimum(np.arange(out_size[0]) * stride[0] - padding[0] + kernel[0] - 1, in_size[0] - 1)
    columns = np.minimum(np.arange(out_size[1]) * stride[1] - padding[1] + kernel[1] - 1, in_size[1] - 1)
    return (rows[:, None] * in_size[1] + columns[None, :]).ravel().astype(np.int64)
