"""Kernels of a file, costs fitted to known truths, and predictions that say what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

import hwopt
from hwopt.config import hardware as profiles
from hwopt.config.hardware import shipped
from hwopt.core.hardware import Calibration, HardwareProfile
from hwopt.engine.judge import judge
from hwopt.errors import ConfigError, HwoptError
from hwopt.prediction.fit import CALL, Timed, fit
from hwopt.prediction.predict import predict
from hwopt.prediction.suite import networks, quantized
from hwopt.prediction.work import Kernel, kernels
from hwopt.testing.models import float_model, quantized_model

CALIBRATION = Calibration(
    cpu="a CPU",
    runtime="onnxruntime 1",
    reference_ms=0.2,
    call_us=5.0,
    costs={"conv.fp32": {"macs": 10.0, "each": 1000.0}, "pool.fp32": {"bytes": 100.0}},
    spread=1.3,
    models=10,
)


def conv(macs: int, *, kind: str = "conv", size: int = 0) -> Kernel:
    return Kernel(name="k", kind=kind, dtype="fp32", macs=macs, bytes=size)


def test_kernels_of_a_float_and_of_an_integer_file(tmp_path: Path) -> None:
    """A stem, a depthwise and a pointwise convolution, an addition, two poolings and a linear layer."""
    found = kernels(onnx.load(float_model(tmp_path)[0]))
    assert [k.kind for k in found] == ["conv", "depthwise", "pointwise", "add", "pool", "pool", "dense"] or [
        k.kind for k in found
    ] == ["conv", "depthwise", "pointwise", "add", "pool", "other", "dense"]
    assert {k.dtype for k in found} == {"fp32"}
    stem = found[0]
    assert (stem.macs, stem.gather) == (64 * 9 * 16, 64 * 9 * 4)
    assert stem.bytes == 4 * (64 + 64 * 16 + 9 * 16)
    integers = kernels(onnx.load(quantized_model(tmp_path, "generic-cpu")[0]))
    weighted = [k for k in integers if k.macs]
    assert {k.dtype for k in weighted} == {"int8"}
    assert sum(k.kind == "convert" for k in integers) >= 2  # the input, and the output or what stays in float


def test_batches_multiply_work_and_not_weights(tmp_path: Path) -> None:
    model = onnx.load(float_model(tmp_path)[0])
    one, four = kernels(model), kernels(model, 4)
    assert [4 * k.macs for k in one] == [k.macs for k in four]
    weights = 4 * 9 * 16
    assert four[0].bytes - weights == 4 * (one[0].bytes - weights)


def test_known_costs_are_found_again() -> None:
    """30 networks whose times are exactly a sum of costs, with 2 % noise."""
    rng = np.random.default_rng(0)
    timed = []
    for _ in range(30):
        found = [conv(int(rng.integers(1e5, 1e7)), size=int(rng.integers(1e4, 1e6))) for _ in range(3)]
        found += [conv(0, kind="add", size=int(rng.integers(1e4, 1e6)))]
        seconds = 4e-6 + sum(2e-12 * k.macs + 3e-11 * k.bytes + 1e-6 for k in found)
        timed.append(
            Timed(kernels=tuple(found), seconds=seconds * float(np.exp(0.02 * rng.standard_normal())))
        )
    made = fit(timed)
    assert made.costs["conv.fp32", "macs"] == pytest.approx(2e-12, rel=0.1)
    assert made.costs["conv.fp32", "bytes"] == pytest.approx(3e-11, rel=0.5)
    assert (CALL, "each") in made.costs
    assert 1.01 < made.spread < 1.1


def test_a_calibrated_prediction_is_the_sum_of_its_costs() -> None:
    hardware = shipped("generic-cpu").model_copy(update={"calibration": CALIBRATION})
    found = predict([conv(1_000_000), conv(0, kind="pool", size=1000)], hardware)
    truth = 5e-6 + (10e-12 * 1e6 + 1e-6) + 100e-12 * 1000
    assert found.seconds.estimate == pytest.approx(truth)
    assert found.seconds.high == pytest.approx(truth * 1.3)
    assert "calibrated on a CPU" in found.basis
    with pytest.raises(ConfigError, match=r"calibrated for 1 threads"):
        predict([conv(1)], hardware, threads=2)


def test_a_data_sheet_gives_the_longest_of_three() -> None:
    """nvidia-l4: 242.5 int8 TOPS, 30.3 fp32, 300 GB/s."""
    hardware = shipped("nvidia-l4")
    macs = predict([conv(10**10)], hardware).seconds
    assert macs.estimate == pytest.approx(2e10 / (30.3e12 * 0.42))
    assert macs.high == pytest.approx(2 * macs.estimate)
    moved = predict([conv(0, kind="add", size=10**9)], hardware, batch=32).seconds
    assert moved.estimate == pytest.approx(1e9 / (300e9 * 0.7))
    assert moved.high == pytest.approx(1.5 * moved.estimate)
    small = predict([conv(10)] * 4, hardware).seconds
    assert small.estimate == pytest.approx(4 * 6.5e-6)


def test_files_in_order_and_as_json(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    first, second = float_model(slow)[0], quantized_model(tmp_path, "nvidia-l4")[0]
    found = hwopt.predict([first, second], target="nvidia-l4")
    assert found["tier"] == "predicted"
    one, two = found["results"]
    assert one["latency_ms"]["low"] < one["latency_ms"]["estimate"] < one["latency_ms"]["high"]
    assert 0 < two["over_the_first"]["faster"] < 1
    assert one["fits_in_memory"] is True
    assert sum(one["share_by_kind"].values()) == pytest.approx(1)


@pytest.mark.parametrize("target", ["zcu104", "generic-cpu"])
def test_what_cannot_be_predicted_says_so(target: str, tmp_path: Path) -> None:
    with pytest.raises(HwoptError, match=r"FPGA|gives no arithmetic"):
        hwopt.predict([float_model(tmp_path)[0]], target=target)


def test_a_prediction_alone_never_passes() -> None:
    from hwopt.core.measurement import Verdict
    from hwopt.core.profile import Requirement

    row: dict[str, Any] = {
        "status": "ok",
        "tier": "predicted",
        "latency_ms": {"p50": 1.0, "low": 0.9, "high": 1.1},
        "speedup": None,
        "details": {},
    }
    judged = judge(Requirement(metric="latency_ms", max=2.0), row)
    assert judged.verdict is Verdict.INCONCLUSIVE
    drifted = row | {
        "tier": "measured",
        "details": {"benchmark": {"reference": {"milliseconds": 0.3, "on_record_ms": 0.2}}},
    }
    judged = judge(Requirement(metric="latency_ms", max=2.0), drifted)
    assert (judged.verdict, "0.2 ms are on record" in judged.reason) == (Verdict.INCONCLUSIVE, True)


def test_the_suite_is_the_same_each_time_and_runs_in_integer() -> None:
    first, second = (list(networks()) for _ in range(2))
    assert [m.SerializeToString() for m in first] == [m.SerializeToString() for m in second]
    assert len(first) >= 40
    for model in (first[0], first[-1]):
        onnx.checker.check_model(model)
        made = quantized(model, shipped("generic-cpu").quantization)
        assert any(node.op_type == "DequantizeLinear" for node in made.graph.node)


def test_a_written_profile_is_read_again(tmp_path: Path) -> None:
    value = shipped("generic-cpu").model_copy(update={"calibration": CALIBRATION}).to_json()
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(value | {"name": "mine", "sources": {**value["sources"], "calibration": "here"}})
    )  # type: ignore[dict-item]
    assert profiles.find(str(path), tmp_path).calibration == CALIBRATION


@pytest.mark.slow
def test_calibrating_this_machine(tmp_path: Path) -> None:
    """Two minutes: afterwards a network that is not in the suite is predicted to within the spread, squared."""
    made: HardwareProfile = hwopt.calibrate("host-cpu")
    kept = made.calibration
    assert kept is not None
    assert 1 < kept.spread < 3
    path = float_model(tmp_path)[0]
    measured = hwopt.benchmark([path])["results"][0]["latency_ms"]["p50"]
    seconds = predict(kernels(onnx.load(path)), made).seconds
    assert seconds.low / kept.spread < measured / 1e3 < seconds.high * kept.spread
