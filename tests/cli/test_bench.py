"""hwopt bench, check, predict and doctor, as a user calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwopt as package
from hwopt.api import bench as api
from hwopt.api.self_test import healthy
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.measuring.preflight import Preflight, preflight
from hwopt.testing.models import float_model, quantized_model
from tests.conftest import Command

QUICK = ("--time-budget", "0.3", "--processes", "1", "-q")


def two_inputs(path: Path) -> Path:
    """Token ids and a mask, both with a free length."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "words"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["m"], "m"),
        helper.make_node("Mul", ["e", "m"], ["k"], "masked"),
        helper.make_node("ReduceMean", ["k", "axes"], ["y"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "length"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(np.random.default_rng(0).random((50, 8), np.float32), "table"),
            numpy_helper.from_array(np.asarray([2]), "last"),
            numpy_helper.from_array(np.asarray([1]), "axes"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_the_table_names_everything(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path), quantized_model(tmp_path, "generic-cpu")
    outcome = command("bench", "float.onnx", "quantized.onnx", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "float.onnx: p50 " in outcome.out
    assert "speed-up 1.00×" in outcome.out
    assert "100% of the weighted operators in integer (measured on" in outcome.out
    assert "MB of memory, loads in" in outcome.out


def test_batches_have_a_rate_and_pauses_take_time(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path)
    outcome = command("bench", "float.onnx", "--scenario", "batch", "--batch", "8", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "samples/s" in outcome.out
    paced = package.benchmark(
        [tmp_path / "float.onnx"], scenario="paced", rate_hz=100.0, budget_seconds=0.3, processes=1
    )
    row = paced["results"][0]
    assert 20 <= row["latency_ms"]["count"] <= 110  # a pause of 10 ms before each, for about a second
    assert row["latency_ms"]["p99"] is None


@pytest.mark.slow
def test_auto_measures_every_runtime_that_is_here(tmp_path: Path) -> None:
    path, _ = quantized_model(tmp_path, "generic-cpu")
    found = package.benchmark([path], runtimes=("auto",), budget_seconds=0.3, processes=1)
    names = [row["runtime"] for row in found["results"]]
    assert names[0] == "onnxruntime"
    assert not set(names) & {"torch", "torch-compile", "tensorrt-rtx"}  # they deploy no ONNX files
    if len(names) > 1:
        (choice,) = found["faster_runtime"]
        assert choice["runtime"] in names
        assert choice["speed_to_it"][choice["runtime"]]["estimate"] == 1.0
        slower = [ratio["low"] for name, ratio in choice["speed_to_it"].items() if name != choice["runtime"]]
        assert all(low <= 1 for low in slower)  # no other one surely faster


def test_several_inputs_come_from_a_file(tmp_path: Path, command: Command) -> None:
    two_inputs(tmp_path / "m.onnx")
    outcome = command("bench", "m.onnx", *QUICK)
    assert (outcome.code, "only the first axis may be free" in outcome.err) == (2, True)
    assert "--inputs" in outcome.err
    np.savez(tmp_path / "in.npz", ids=np.ones((4, 7), np.int64), mask=np.ones((4, 7), np.float32))
    outcome = command("bench", "m.onnx", "--inputs", "in.npz", "--batch", "2", *QUICK)
    assert outcome.code == 0, outcome.err


def test_a_fixed_batch_is_not_measured_as_another(tmp_path: Path, command: Command) -> None:
    model = onnx.load(float_model(tmp_path)[0])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    outcome = command("bench", "four.onnx", "--batch", "2", *QUICK)
    assert (outcome.code, "--batch 4" in outcome.err) == (2, True)
    found = command("bench", "four.onnx", "--json", *QUICK).json  # its own batch where none is asked for
    assert found["results"][0]["batch"] == 4


def test_real_inputs_of_any_batch_and_not_fewer_rows(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path)
    np.savez(tmp_path / "in.npz", input=np.random.default_rng(0).random((40, 1, 8, 8), np.float32))
    arguments = ("bench", "float.onnx", "--scenario", "batch", "--inputs", "in.npz", "--json", *QUICK)
    row = command(*arguments, "--batch", "40").json["results"][0]
    assert row["batch"] == 40
    # A mean against a median on a shared host: the factor of 40 is what is held here.
    assert 0.25 < row["samples_per_second"] / (40 / row["latency_ms"]["p50"] * 1e3) < 4
    outcome = command(*arguments, "--batch", "64")
    assert (outcome.code, "input has 40 rows" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--runtime", "onnxrntime"), 2, "did you mean 'onnxruntime'"),
        (("--runtime", "tensorrt"), 2, "does not run on a cpu"),
        (("--rate", "5"), 2, "add --scenario paced"),
        (("--scenario", "paced", "--batch", "4"), 2, "one sample at a time"),
        (("--inputs", "no.npz"), 2, "no.npz"),
        (("--self-test", "--loadgen"), 2, "at most one model"),
    ],
)
def test_bad_options(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, command: Command
) -> None:
    float_model(tmp_path)
    outcome = command("bench", "float.onnx", *arguments, *QUICK)
    assert outcome.code == code, outcome.err
    assert says in outcome.err


def test_strict_refuses_a_busy_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: getattr(preflight(), name) for name in Preflight.__slots__}
    busy = Preflight(**{**values, "load": 100.0})
    monkeypatch.setattr(api, "preflight", lambda: busy)
    path, _ = float_model(tmp_path)
    with pytest.raises(EngineMissingError, match="not fit to measure on: the machine is busy"):
        package.benchmark([path], strict=True)
    assert package.benchmark([path], budget_seconds=0.2, processes=1)["results"]


@pytest.mark.slow
def test_self_test_counts_its_claims(tmp_path: Path, command: Command) -> None:
    outcome = command("bench", "--self-test", "--comparisons", "8", "--time-budget", "1", "-q", "--json")
    found = outcome.json
    assert outcome.code == (0 if found["healthy"] else 1), outcome.err
    assert sum(found["verdicts"].values()) == found["comparisons"] == 8
    assert len(found["planted"]["estimates"]) == 3
    assert abs(found["bias"]) < 0.1
    assert found["tier"] == "measured"


def test_a_sick_machine_fails_its_self_test() -> None:
    """Intervals that miss the truth in 6 of 10 comparisons are not bad luck."""
    from hwopt.core.measurement import Interval, Verdict

    sick = [Interval(1.03, 1.01, 1.05)] * 6 + [Interval(1.0, 0.99, 1.01)] * 4
    assert not healthy([Verdict.PASS] * 10, sick)
    assert healthy([Verdict.PASS] * 30, [Interval(1.03, 1.01, 1.05)] + [Interval(1.0, 0.99, 1.01)] * 29)
    assert not healthy([Verdict.PASS] * 8, [])  # nothing is known
    assert not healthy([Verdict.FAIL] * 3 + [Verdict.PASS] * 27, sick[6:])


def test_loadgen_agrees_or_is_asked_for(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path)
    outcome = command("bench", "float.onnx", "--loadgen", "--json", *QUICK)
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        assert (outcome.code, "hwopt[loadgen]" in outcome.err) == (4, True)
        return
    assert outcome.code == 0, outcome.err
    (found,) = outcome.json["loadgen"]
    assert "no MLPerf result" in found["note"]
    assert found["queries"] == 2800
    assert found["p99_bound_ms"] >= found["p99_ms"] >= found["p50_ms"]  # certified, from enough queries
    # LoadGen's callback and log cost some µs a query, and this network takes some µs.
    assert 0.2 < found["own_ms"]["p50"] / found["p50_ms"] < 2


@pytest.mark.slow
def test_check_and_predict(tmp_path: Path, command: Command) -> None:
    float_model(tmp_path), quantized_model(tmp_path, "generic-cpu")
    outcome = command("check", "quantized.onnx")
    assert (outcome.code, "sound ONNX" in outcome.out) == (0, True)
    here = command("check", "quantized.onnx", "--target", "host-cpu")
    assert (here.code, "onnxruntime: loads and runs it, 100%" in here.out) == (0, True)
    outcome = command("predict", "float.onnx", "quantized.onnx", "--target", "nvidia-l4")
    assert outcome.code == 0, outcome.err
    assert "(predicted, data sheet)" in outcome.out
    assert "faster with a probability of" in outcome.out
    assert command("predict", "float.onnx", "--target", "zcu104").code == 2
    assert command("check", "float.onnx", "--target", "zcu104").code == 4
    assert command("check", "no.onnx").code == 2


def test_doctor_explains_every_backend(command: Command) -> None:
    found = command("doctor", "--json").json
    names = {backend["name"] for backend in found["backends"]}
    assert names >= {"onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx", "torch"}
    for backend in found["backends"]:
        assert backend["available"] or (backend["reason"] and backend["fix"])
    assert "warnings" in found["preflight"]
    text = command("doctor").out
    assert "extra     LoadGen" in text


def test_detect_tells_limits_and_gpu(command: Command) -> None:
    found = command("hardware", "detect", "--json").json
    assert found["limits"]["cores"] >= 1
    assert set(found["gpu"]) in ({"reason"}, {"name", "isa"})


def test_options_are_checked_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="scenario paced"):
        package.benchmark(["no.onnx"], rate_hz=5.0)
