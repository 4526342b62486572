"""The formulas against published designs: every bound that docs/results/fpga.md states, held here."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.fpga import overlay, streaming
from hwopt.fpga import bands, simulate

RESULTS = [streaming.run(case) for case in streaming.cases() if case["id"] not in streaming.OUTSIDE]
TESTED = [r for r in RESULTS if not r.calibration]
# Products of constants at RF 1: the compiler turns some into shifts, and Vitis adds cycles between frames.
CONSTANT = {"hls4ml-iris", "hls4ml-base-conv2d-vitis", "hls4ml-base-conv2d-vivado", "hls4ml-i99-dsp"}


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: r.id)
def test_interval_is_exact(result: streaming.Result) -> None:
    if "ii_cycles" not in result.errors:
        pytest.skip("no interval was published")
    if result.id == "hls4ml-base-conv2d-vitis":
        pytest.skip("Vitis starts the next frame 4 cycles after the last pixel; the folding says 49")
    assert result.errors["ii_cycles"] == 0


def test_latency_of_streaming_designs() -> None:
    errors = np.abs([r.errors["latency_us"] for r in TESTED if "latency_us" in r.errors])
    assert len(errors) >= 27
    assert errors.mean() <= 0.10
    assert errors.max() <= 0.20


def test_the_latency_band_holds_nine_of_ten() -> None:
    truth = [1 / (1 + r.errors["latency_us"]) for r in TESTED if "latency_us" in r.errors]
    inside = [bands.LATENCY.low <= t <= bands.LATENCY.high for t in truth]
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("name", ["lut", "ff"])
def test_the_bands_of_tables_and_flip_flops_hold_nine_of_ten(name: str) -> None:
    inside = []
    for r in RESULTS:
        if name in r.errors:
            band = bands.of(r.tool, name)
            inside.append(band.low <= 1 / (1 + r.errors[name]) <= band.high)
    assert len(inside) >= 20
    assert np.mean(inside) >= 0.9


def test_dsp_of_hls4ml() -> None:
    errors = [
        r.errors["dsp"] for r in RESULTS if r.tool == "hls4ml" and "dsp" in r.errors and r.id not in CONSTANT
    ]
    assert len(errors) >= 7
    assert np.abs(errors).max() <= 0.05


def test_frame_rate_of_the_overlay() -> None:
    rows = [r for r in overlay.rows() if r.kind == "frames" and not r.fitted and r.in_the_file]
    one = np.abs([r.error for r in rows if r.cores == 1])
    several = np.abs([r.error for r in rows if r.cores > 1])
    assert one.mean() <= 0.12
    assert one.max() <= 0.20
    assert several.mean() <= 0.12
    assert several.max() <= 0.30


def test_ranks_are_right() -> None:
    measured = [r for r in TESTED if r.measured.get("latency_us")]
    found = spearmanr([r.found["latency_us"] for r in measured], [r.measured["latency_us"] for r in measured])
    assert found.statistic >= 0.95


def test_the_gate_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wait for a window the bounds break."""
    monkeypatch.setattr(simulate, "last_needed", lambda layer: np.zeros(layer.pixels, np.int64))
    slow = [
        c for c in streaming.cases() if c["id"] in {"mlt07-pynq-cnv", "fcn-zedboard-ic", "fcn-cora-z7-kws"}
    ]
    assert max(abs(streaming.run(case).errors["latency_us"]) for case in slow) > 0.2
