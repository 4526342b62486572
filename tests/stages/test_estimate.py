from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwopt.config.hardware import shipped
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.choices import NoOptions
from hwopt.core.hardware import FpgaFabric
from hwopt.core.progress import silent
from hwopt.core.stage import StageContext
from hwopt.errors import StageFailedError
from hwopt.layer_table import Layer, LayerKind, layer_table
from hwopt.numerics import fpga
from hwopt.stages.estimate.fold import Design, Folding, foldings, search, shortage, usable
from hwopt.stages.estimate.run import LATENCY_BAND, latency_cycles, run
from hwopt.testing.models import float_model, quantized_model


def fabric(name: str = "zcu104") -> FpgaFabric:
    found = shipped(name).fpga
    assert found is not None
    return found


def conv(cin: int = 8, cout: int = 16, size: int = 8, bits: int = 8) -> Layer:
    return Layer(
        name="c", op="Conv", kind=LayerKind.CONV, inputs=(), in_shape=(cin, size, size),
        out_shape=(cout, size, size), kernel=(3, 3), padding=(1, 1), weight_bits=bits, activation_bits=bits,
        macs=cin * cout * 9 * size * size, weights=cin * cout * 9,
    )  # fmt: skip


def test_cycles_by_hand() -> None:
    # FINN's CNV, layer 1: 64 rows, 27 columns, 30×30 pixels, PE 16, SIMD 3.
    assert fpga.matrix_cycles(64, 27, 16, 3, 900) == 4 * 9 * 900


def cnv() -> tuple[list[Layer], Design]:
    """CNV of BNN-PYNQ with the folding of `mlt07-pynq-cnv`: six convolutions, two poolings, three dense."""
    p, q = [16, 32, 16, 16, 4, 1, 1, 1, 5], [3, 32, 32, 32, 32, 32, 4, 8, 1]
    layers: list[Layer] = []
    cycles: list[int] = []

    def add(
        op: str, kind: LayerKind, ins: tuple[int, ...], outs: tuple[int, ...], n: int, **more: Any
    ) -> None:
        before = (layers[-1].name,) if layers else ()
        bits = 1 if layers else 8
        layers.append(
            Layer(
                name=f"{op}{len(layers)}", op=op, kind=kind, inputs=before, in_shape=ins, out_shape=outs,
                weight_bits=1, activation_bits=bits, **more,
            )
        )  # fmt: skip
        cycles.append(n)

    fold = iter(zip(p, q, strict=True))
    for cin, cout, size in [
        (3, 64, 32),
        (64, 64, 30),
        (64, 128, 14),
        (128, 128, 12),
        (128, 256, 5),
        (256, 256, 3),
    ]:
        out = size - 2
        n = fpga.matrix_cycles(cout, 9 * cin, *next(fold), out * out)
        add("Conv", LayerKind.CONV, (cin, size, size), (cout, out, out), n, kernel=(3, 3))
        if size in {30, 12}:
            half = out // 2
            add("MaxPool", LayerKind.POOL, (cout, out, out), (cout, half, half), out * out, kernel=(2, 2),
                stride=(2, 2))  # fmt: skip
    for features, outs in [(256, 512), (512, 512), (512, 10)]:
        n = fpga.matrix_cycles(outs, features, *next(fold), 1)
        add("Gemm", LayerKind.DENSE, (features,), (outs,), n)
    units = tuple(
        Folding(layer=layer, p=1, q=1, in_dsp=False, cycles=n, resources=fpga.Resources())
        for layer, n in zip(layers, cycles, strict=True)
    )
    return layers, Design(foldings=units, interval=max(cycles), total=fpga.Resources())


def test_latency_of_a_measured_board_lies_in_the_band() -> None:
    """PYNQ-Z2 at 100 MHz ran CNV in 1511.78 µs (MLPerf Tiny v0.7, `mlt07-pynq-cnv`); nothing is fitted."""
    layers, design = cnv()
    assert design.interval == 32768
    microseconds = latency_cycles(layers, design) / 100
    assert microseconds * (1 - LATENCY_BAND) <= 1511.78 <= microseconds * (1 + LATENCY_BAND)
    assert microseconds < sum(f.cycles for f in design.foldings) / 100  # not FINN's sum of layers


@pytest.mark.parametrize(
    ("depth", "width", "blocks"),
    [(16384, 1, 1), (16385, 1, 2), (2048, 9, 1), (1024, 18, 1), (512, 36, 1), (512, 72, 2), (2048, 36, 4)],
)
def test_block_ram_aspect_ratios(depth: int, width: int, blocks: int) -> None:
    assert fpga.bram18_blocks(depth, width) == blocks


@given(st.sampled_from([4, 8]), st.sampled_from([2, 4, 8]))
def test_more_parallel_is_faster_and_not_smaller(bits: int, p: int) -> None:
    one = fpga.matrix_resources(16, 72, p, 2, bits, bits, macs_per_dsp=None)
    two = fpga.matrix_resources(16, 72, 2 * p, 2, bits, bits, macs_per_dsp=None)
    assert two.lut > one.lut
    assert fpga.matrix_cycles(16, 72, 2 * p, 2, 64) < fpga.matrix_cycles(16, 72, p, 2, 64)


def test_foldings_divide_the_matrix_and_keep_to_the_stream_width() -> None:
    for f in foldings(conv(), fabric()):
        assert f.layer.rows % f.p == 0
        assert f.layer.columns % f.q == 0
        assert f.q * 8 <= fabric().max_stream_bits


def test_dsp_packing_follows_the_profile() -> None:
    eight = next(f for f in foldings(conv(bits=8), fabric()) if f.in_dsp and f.p == 16 and f.q == 4)
    four = next(f for f in foldings(conv(bits=4), fabric()) if f.in_dsp and f.p == 16 and f.q == 4)
    assert (eight.resources.dsp, four.resources.dsp) == (32, 16)


@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=30),
    st.lists(st.floats(0, 50), min_size=5, max_size=5),
    st.floats(0.5, 5),
)
def test_stream_times_equal_the_recurrence(steps: list[int], gaps: list[float], interval: float) -> None:
    arrival = np.cumsum(gaps)
    needed = np.minimum(np.cumsum(steps) // 8, 4)
    got = fpga.stream_times(arrival, needed, interval)
    last = 0.0
    for k, index in enumerate(needed):
        last = max(last, arrival[index]) + interval
        assert got[k] == pytest.approx(last)


def test_last_needed_pixel() -> None:
    # 3×3 with padding 1 on 4×4: output (0, 0) needs input (1, 1), the last needs the last.
    needed = fpga.last_needed((4, 4), (4, 4), (3, 3), (1, 1), (1, 1))
    assert (needed[0], needed[-1]) == (5, 15)


def test_search_fits_and_no_shorter_interval_would() -> None:
    layers = [conv(), conv(cin=16, cout=32)]
    design = search(layers, fabric("pynq-z2"))
    assert not design.short
    assert all(f.cycles <= design.interval for f in design.foldings)
    total, limits = design.total, usable(fabric("pynq-z2"))
    assert total.lut * 1.5 <= limits["lut"]
    assert total.dsp <= limits["dsp"]


def test_a_net_that_cannot_fit_says_what_is_short() -> None:
    huge = [conv(cin=1024, cout=1024)]
    design = search(huge, fabric("pynq-z2"))
    assert design.short
    assert re.match(r"bram18: needs [\d,]+, 224 are usable", design.short[0])
    assert shortage(design.total, fabric("pynq-z2")) == design.short


def test_latency_lies_between_interval_and_sum(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "zcu104")
    layers = layer_table(path)
    assert [layer.kind for layer in layers] == [
        LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.CONV, LayerKind.ADD, LayerKind.POOL,
        LayerKind.GLOBAL_POOL, LayerKind.DENSE,
    ]  # fmt: skip
    add = next(layer for layer in layers if layer.kind is LayerKind.ADD)
    assert len(add.inputs) == 2
    design = search(layers, fabric())
    cycles = latency_cycles(layers, design)
    assert design.interval <= cycles <= 64 + sum(f.cycles for f in design.foldings) + 64
    slower = [replace(f, cycles=2 * f.cycles) for f in design.foldings]
    doubled = type(design)(foldings=tuple(slower), interval=2 * design.interval, total=design.total)
    assert latency_cycles(layers, doubled) > cycles


def test_a_float_model_has_no_design(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    artifact = Artifact(kind=Kind.ONNX, digest="sha256:0", bytes=1, path=path)
    context = StageContext(
        workdir=tmp_path, seed=0, threads=1, hardware=shipped("zcu104"), model={}, progress=silent,
        data=lambda: pytest.fail("the estimate reads no data"),
    )  # fmt: skip
    with pytest.raises(StageFailedError, match="4 layers have float weights or inputs"):
        run(context, {"model": artifact}, NoOptions())


def test_macs_by_hand(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "zcu104")
    macs = {layer.kind: layer.macs for layer in layer_table(path) if layer.macs}
    assert macs[LayerKind.DEPTHWISE] == 9 * 16 * 64
    assert macs[LayerKind.DENSE] == 16 * 4
