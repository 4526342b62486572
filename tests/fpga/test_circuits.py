"""Single formulas, by hand and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwopt.config.hardware import names, shipped
from hwopt.core.fpga import Flow
from hwopt.fpga import circuits
from hwopt.fpga.flows import Fold, closest_reuse, folded, hls4ml_unit, parallel_latency
from hwopt.fpga.simulate import last_needed, stream_times
from hwopt.fpga.streaming import divisors, options
from hwopt.fpga.unrolled import signed_digits
from tests.fpga.nets import conv, dense, fabric


def test_cycles_by_hand() -> None:
    # FINN's CNV, layer 1: 64 rows, 27 columns, 30×30 pixels, PE 16, SIMD 3.
    assert circuits.matrix_cycles(64, 27, 16, 3, 900) == 4 * 9 * 900


@pytest.mark.parametrize(
    ("words", "bits", "blocks"),
    [(16384, 1, 1), (16385, 1, 2), (2048, 9, 1), (1024, 18, 1), (512, 36, 1), (512, 72, 2), (2048, 36, 4)],
)
def test_block_ram_takes_the_shape_that_needs_the_fewest(words: int, bits: int, blocks: int) -> None:
    assert fabric().bram.needed(words, bits) == blocks


def test_weight_memories_of_a_placed_design() -> None:
    """LFC of BNN-PYNQ: a memory a processing element; 208 RAMB18 in the placed design's report."""
    layers = [(32, 64, 832, 1024), (64, 32, 1024, 1024), (32, 64, 1024, 1024), (16, 8, 1024, 64)]
    assert (
        sum(
            pe * fabric("pynq-z2").bram.needed(ins * outs // (pe * simd), simd)
            for pe, simd, ins, outs in layers
        )
        == 208
    )


@pytest.mark.parametrize(
    ("device", "bits", "blocks"),
    [("zcu104", 8, 32), ("zcu104", 4, 16), ("zcu104", 16, 64), ("ecp5-85", 8, 64), ("cyclone-v", 8, 24),
     ("pynq-z2", 20, 128)],
)  # fmt: skip
def test_dsp_packing_follows_the_profile(device: str, bits: int, blocks: int) -> None:
    assert circuits.dsp_blocks(fabric(device), 16, 4, bits, min(bits, 16)) == blocks


@given(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8]))
def test_more_parallel_is_faster_and_not_smaller(bits: int, p: int) -> None:
    layer = conv(cin=8, cout=16, bits=bits)
    small, large = (
        circuits.matrix_resources(fabric(), layer, n, 2, in_dsp=False, weights_in="bram") for n in (p, 2 * p)
    )
    assert large.lut > small.lut
    assert large.ff > small.ff
    assert circuits.matrix_cycles(16, 72, 2 * p, 2, 64) < circuits.matrix_cycles(16, 72, p, 2, 64)


@given(st.integers(1, 15))
def test_more_bits_never_take_less(bits: int) -> None:
    few, more = (
        circuits.matrix_resources(fabric(), conv(bits=b), 4, 2, in_dsp=False, weights_in="bram")
        for b in (bits, bits + 1)
    )
    assert (more.lut, more.ff, more.bram) >= (few.lut, few.ff, few.bram)


@pytest.mark.parametrize("device", [n for n in names() if shipped(n).fpga])
def test_foldings_divide_the_matrix_and_keep_to_the_stream_width(device: str) -> None:
    found = options(conv(), fabric(device))
    assert found
    for unit in found:
        assert unit.layer.rows % unit.p == 0
        assert unit.layer.columns % unit.q == 0
        assert unit.q * 8 <= fabric(device).max_stream_bits


def test_the_reuse_factor_is_a_folding() -> None:
    """RF = (MH/P)·(MW/Q): hls4ml multiplies as often as FINN folds, up to its cycles around the loop."""
    layer = dense(64, 32)
    for rf in (64, 128, 256):
        unit = hls4ml_unit(layer, fabric(), rf)
        assert unit.p * unit.q == 64 * 32 // rf
        assert unit.reuse == rf
        finn = folded(layer, fabric(), Flow.FINN, Fold(pe=unit.p, simd=unit.q))
        assert finn.cycles == rf
        assert unit.cycles == rf + 4 + 1


@pytest.mark.parametrize(
    ("ins", "outs", "asked", "taken"),
    [
        (64, 72, 144, 128),
        (72, 8, 8, 8),
        (72, 72, 144, 144),
        (75, 16, 4, 3),
        (2048, 10, 16384, 20480),
    ],
)
def test_reuse_factors_snap_as_hls4ml_snaps_them(ins: int, outs: int, asked: int, taken: int) -> None:
    assert closest_reuse(dense(ins, outs), asked) == taken


def test_cycles_of_a_convolution_that_was_cosimulated() -> None:
    """10×10 padded pixels, 64 windows, RF 144: Keb-L/hls4ml-data found 9,545 cycles, one of them between frames."""
    layer = conv(cin=16, cout=16, bits=16)
    assert hls4ml_unit(layer, fabric(), 144).cycles + 1 == 9545
    assert hls4ml_unit(layer, fabric(), 144, overhead=5).cycles + 1 == 9609


def test_a_parallel_network_takes_as_many_cycles_as_its_adder_trees_are_deep() -> None:
    """hls4ml#99: 10-32-1 in 11 (LUT) and 12 (DSP) cycles."""
    assert 11 <= parallel_latency([dense(10, 32), dense(32, 1)]) <= 13


@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=30),
    st.lists(st.floats(0, 50), min_size=5, max_size=5),
    st.floats(0.5, 5),
    st.floats(0, 20),
)
def test_stream_times_equal_the_recurrence(
    steps: list[int], gaps: list[float], interval: float, depth: float
) -> None:
    arrival = np.cumsum(gaps)
    needed = np.minimum(np.cumsum(steps) // 8, 4)
    got = stream_times(arrival, needed, interval, depth)
    last = 0.0
    for k, index in enumerate(needed):
        last = max(last, arrival[index]) + interval
        assert got[k] == pytest.approx(last + depth)


def test_last_needed_pixel() -> None:
    # 3×3 with padding 1 on 4×4: output (0, 0) needs input (1, 1), the last needs the last.
    needed = last_needed(conv(size=4))
    assert (needed[0], needed[-1]) == (5, 15)


def test_divisors() -> None:
    assert divisors(36) == (1, 2, 3, 4, 6, 9, 12, 18, 36)


@given(st.integers(-(2**15), 2**15))
def test_signed_digits_are_the_fewest(value: int) -> None:
    """A number of n nonzero digits is a sum of n powers of two with signs, and no shorter sum exists."""
    fewest, waiting = 0, {abs(value)}
    while 0 not in waiting:
        fewest += 1
        waiting = {
            abs(n - s * 2**e) for n in waiting for e in {n.bit_length() - 1, n.bit_length()} for s in (1,)
        }
    assert int(signed_digits(np.array([value]))[0]) == fewest
