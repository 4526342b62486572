"""Designs: searched, given, judged; and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import add
from pathlib import Path

import pytest

from hwopt.config.hardware import shipped
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.fpga import Blocks, Flow, Layout
from hwopt.core.progress import silent
from hwopt.core.stage import StageContext
from hwopt.errors import ConfigError, StageFailedError
from hwopt.fpga import bands
from hwopt.fpga.design import Resources
from hwopt.fpga.estimate import Wish, estimate, narrowed, with_bits
from hwopt.fpga.flows import Fold
from hwopt.fpga.record import to_json
from hwopt.fpga.search import search
from hwopt.fpga.simulate import simulate
from hwopt.fpga.streaming import options
from hwopt.layer_table import LayerKind, layer_table
from hwopt.stages.estimate.run import run
from hwopt.stages.estimate.spec import EstimateConfig, check
from hwopt.testing.models import float_model, quantized_model
from tests.fpga.nets import conv, dense, fabric

CHAIN = [dense(16, 8, "a"), dense(8, 4, "b", ("a",))]


def test_search_fits_and_no_shorter_interval_would() -> None:
    layers = [conv(name="a"), conv(cin=16, cout=32, name="b", inputs=("a",))]
    design, found = estimate(layers, fabric("pynq-z2"), Wish())
    assert design.fits
    assert found is not None
    assert all(need.high <= need.usable for need in design.needs.values())
    assert found.next_step is None or not found.next_step.fits
    assert all(unit.cycles <= design.interval for unit in design.units)


def test_small_networks_are_searched_exactly() -> None:
    """Against every combination of every legal folding: no other design that fits has a lower latency."""
    tight = fabric("ice40-up5k").model_copy(update={"lut": 9000, "ff": 9000})
    found = search(CHAIN, tight)
    assert found.exact
    best = min(
        simulate(units, tight.input_bits).cycles
        for units in product(*(options(layer, tight) for layer in CHAIN))
        if _fits(units, tight)
    )
    assert simulate(found.units, tight.input_bits).cycles == best


def _fits(units, tight) -> bool:  # type: ignore[no-untyped-def]
    total = reduce(add, (u.resources for u in units), Resources())
    room = {
        "lut": tight.lut * 0.7 / 1.6 / bands.OTHER_TABLES.high,
        "ff": tight.ff * 0.5,
        "dsp": tight.dsp * 0.8,
        "bram": 24,
    }
    return all(getattr(total, n) * bands.of("finn", n).high <= most for n, most in room.items())


@pytest.mark.parametrize("device", ["ecp5-85", "ice40-up5k", "pynq-z2", "cyclone-v"])
def test_the_search_and_the_verdict_hold_the_same_limits(device: str) -> None:
    """What the search takes for a fit is one, on tables of any width."""
    layers = [conv(cin=3, cout=8, size=16, name="a", bits=4), dense(8, 4, "b", ("a",), bits=4)]
    design, found = estimate(layers, fabric(device), Wish())
    assert found is not None
    assert design.fits or not found.curve


def test_a_frame_rate_is_kept_with_less_than_the_fastest_takes() -> None:
    layers = [conv(name="a"), conv(cin=16, cout=32, name="b", inputs=("a",))]
    fast, _ = estimate(layers, fabric(), Wish())
    slow, _ = estimate(layers, fabric(), Wish(frames_per_second=10_000))
    assert slow.frames_per_second >= 10_000
    assert slow.needs["lut"].estimate + slow.needs["dsp"].estimate * 100 < (
        fast.needs["lut"].estimate + fast.needs["dsp"].estimate * 100
    )
    missed, _ = estimate(layers, fabric("ice40-up5k"), Wish(frames_per_second=1e6))
    assert not missed.fits
    assert "1,000,000 were asked for" in missed.missed or missed.short


def test_a_net_that_cannot_fit_says_what_is_short_and_by_how_much() -> None:
    design, _ = estimate([conv(cin=1024, cout=1024)], fabric("pynq-z2"), Wish())
    assert not design.fits
    assert any(
        re.match(r"bram: needs up to [\d,]+, 224 are usable \([\d.]+ times\)", s) for s in design.short
    )


def test_what_no_source_counts_is_not_judged() -> None:
    """A device whose block RAMs nobody counted gives no verdict where the design needs some."""
    unknown = fabric().model_copy(update={"bram": Blocks(count=None, shapes=((512, 36),)), "uram": None})
    design, _ = estimate([conv(cin=256, cout=256)], unknown, Wish(frames_per_second=10))
    assert design.fits is None
    assert design.unknown == ("bram",)


def test_latency_lies_between_interval_and_sum(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "zcu104")
    layers = layer_table(path)
    assert [layer.kind for layer in layers] == [
        LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.CONV, LayerKind.ADD, LayerKind.POOL,
        LayerKind.GLOBAL_POOL, LayerKind.DENSE,
    ]  # fmt: skip
    joined = next(layer for layer in layers if layer.kind is LayerKind.ADD)
    assert len(joined.inputs) == 2
    assert {x.out_bits for x in layers[:-1]} == {8}
    design, _ = estimate(layers, fabric(), Wish())
    cycles = design.cycles.estimate
    depths = sum(u.depth for u in design.units)
    assert design.interval <= cycles <= 64 + sum(u.cycles for u in design.units) + depths
    assert design.fifo_words[joined.name] > 0  # the short side waits for the long one
    slower = [replace(u, cycles=2 * u.cycles) for u in design.units]
    assert simulate(slower, 64).cycles > cycles


def test_double_the_clock_is_half_the_time() -> None:
    layers = [conv()]
    slow, _ = estimate(layers, fabric(), Wish(clock_mhz=100))
    fast, _ = estimate(layers, fabric(), Wish(clock_mhz=200))
    assert fast.frames_per_second == 2 * slow.frames_per_second


def test_given_foldings_are_taken_and_illegal_ones_refused() -> None:
    wish = Wish(folds={"c": Fold(pe=4, simd=2)})
    design, found = estimate([conv()], fabric(), wish)
    assert found is None
    assert design.interval == 16 // 4 * (72 // 2) * 64
    with pytest.raises(ConfigError, match="pe: 5 does not divide the 16 of c"):
        estimate([conv()], fabric(), Wish(folds={"c": Fold(pe=5)}))
    with pytest.raises(ConfigError, match="names nowhere"):
        estimate([conv()], fabric(), Wish(folds={"nowhere": Fold(pe=1)}))


def test_reuse_factors_fold_for_hls4ml() -> None:
    design, _ = estimate(
        CHAIN, fabric(), Wish(flow=Flow.HLS4ML, folds={"a": Fold(reuse=16), "b": Fold(reuse=8)})
    )
    assert [u.reuse for u in design.units] == [16, 8]
    searched, found = estimate(CHAIN, fabric(), Wish(flow=Flow.HLS4ML))
    assert found is not None
    assert searched.fits


@pytest.mark.parametrize("bits", [(0, 8), (17, 8), (8, 0), (8, 17)])
def test_bits_out_of_range(bits: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="bits are out of range"):
        with_bits([conv()], *bits)


@pytest.mark.parametrize("w", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("a", [1, 4, 16])
def test_every_width_has_a_design(w: int, a: int) -> None:
    design, _ = estimate(with_bits([conv(name="a"), dense(16, 4, "d", ("a",))], w, a), fabric(), Wish())
    assert design.fits


def test_fewer_bits_and_channels_are_never_slower() -> None:
    layers = [conv(cin=16, cout=64, name="a"), conv(cin=64, cout=64, name="b", inputs=("a",))]
    at = {
        (bits, keep): estimate(with_bits(narrowed(layers, keep), bits, bits), fabric("pynq-z2"), Wish())[0]
        for bits in (2, 8) for keep in (0.5, 1.0)
    }  # fmt: skip
    assert at[2, 1.0].interval <= at[8, 1.0].interval
    assert at[8, 0.5].interval < at[8, 1.0].interval


def test_an_overlay_takes_turns() -> None:
    layers = [
        conv(cin=16, cout=16, size=32, name="a"),
        conv(cin=16, cout=16, size=32, name="b", inputs=("a",)),
    ]
    one, _ = estimate(layers, fabric("zcu104"), Wish(layout=Layout.OVERLAY, cores=1))
    two, _ = estimate(layers, fabric("zcu104"), Wish(layout=Layout.OVERLAY))
    assert one.frames_per_second < two.frames_per_second <= 2 * one.frames_per_second
    # 32 rows × 4 groups of 8 pixels × 9 taps, or the bytes, and the start of a layer.
    start = 7.5 * 300
    moved = 16 * 16 * 9 + 2 * 16 * 32 * 32
    assert one.units[0].cycles == pytest.approx(max(32 * 4 * 9, moved / 26.5) + start)
    with pytest.raises(StageFailedError, match="the overlay computes in 8 and 8 bits"):
        estimate(with_bits(layers, 16, 8), fabric("zcu104"), Wish(layout=Layout.OVERLAY))
    with pytest.raises(ConfigError, match="describes no overlay"):
        estimate(layers, fabric("pynq-z2"), Wish(layout=Layout.OVERLAY))


def test_the_systolic_array_by_hand() -> None:
    array = fabric("zcu104").overlays["dpu-b4096"].model_copy(
        update={"kind": "systolic", "array": (16, 16), "dataflow": "weight", "layer_us": 0.0, "bytes_per_cycle": 1e9}
    )  # fmt: skip
    board = fabric("zcu104").model_copy(update={"overlays": {"tpu": array}})
    layer = conv(cin=16, cout=32, size=8)
    design, _ = estimate([layer], board, Wish(layout=Layout.OVERLAY, cores=1))
    assert design.units[0].cycles == (144 // 16) * (32 // 16) * (2 * 16 + 16 + 64 - 2)


def test_a_profile_that_asks_for_an_overlay_that_is_not_there() -> None:
    assert check(EstimateConfig(layout=Layout.OVERLAY), shipped("pynq-z2"))
    assert not check(EstimateConfig(layout=Layout.OVERLAY), shipped("zcu104"))
    assert (
        "no overlay 'x'" in check(EstimateConfig(layout=Layout.OVERLAY, overlay="x"), shipped("zcu104"))[0][0]
    )


def test_energy_says_what_it_is_made_of() -> None:
    board, _ = estimate([conv()], fabric("pynq-z2"), Wish())
    counted, _ = estimate([conv()], fabric("zcu104"), Wish())
    nothing, _ = estimate([conv()], fabric("ecp5-85"), Wish())
    assert to_json(board, None)["energy"]["basis"].startswith("the board's watts")  # type: ignore[index,call-overload,union-attr]
    assert "without the arithmetic, which no source prices" in str(to_json(counted, None)["energy"])
    assert to_json(nothing, None)["energy"]["uj"] is None  # type: ignore[index,call-overload]


def test_a_float_model_has_no_design(tmp_path: Path) -> None:
    path, _ = float_model(tmp_path)
    artifact = Artifact(kind=Kind.ONNX, digest="sha256:0", bytes=1, path=path)
    context = StageContext(
        workdir=tmp_path, seed=0, threads=1, hardware=shipped("zcu104"), model={}, progress=silent,
        data=lambda: pytest.fail("the estimate reads no data"),
    )  # fmt: skip
    with pytest.raises(StageFailedError, match="4 layers have float weights or inputs"):
        run(context, {"model": artifact}, EstimateConfig())


def test_operators_without_a_circuit_are_named() -> None:
    strange = replace(conv(), kind=LayerKind.OTHER, op="Softmax", name="attention")
    dynamic = replace(dense(8, 8), dynamic=True, name="scores")
    with pytest.raises(StageFailedError, match=r"Gemm of two activations \(scores\); Softmax \(attention\)"):
        estimate([strange, dynamic], fabric(), Wish())


def test_macs_by_hand(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "zcu104")
    macs = {layer.kind: layer.macs for layer in layer_table(path) if layer.macs}
    assert macs[LayerKind.DEPTHWISE] == 9 * 16 * 64
    assert macs[LayerKind.DENSE] == 16 * 4
