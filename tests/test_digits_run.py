"""The main job on real data, looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, DigitsRun, hwopt

CANDIDATES = ["fp32", "int8-ptq", "int8-qat", "slim", "slim-qat"]
INTEGER = ["int8-ptq", "int8-qat", "slim-qat"]
CORE = {
    "candidate", "target", "status", "reason", "tier", "accuracy", "accuracy_drop", "agreement", "latency_ms",
    "speedup", "file_bytes", "parameters", "macs", "integer_share", "scheme", "details",
}  # fmt: skip


def test_it_passes(digits_run: DigitsRun) -> None:
    assert digits_run.record["verdict"] == "PASS"
    assert digits_run.code == 0
    assert digits_run.record["schema_version"] == 2


def test_rows_have_the_documented_core(digits_run: DigitsRun) -> None:
    assert len(digits_run.record["results"]) == 15
    for row in digits_run.record["results"]:
        assert set(row) >= CORE
        for name in CORE - {"details", "reason"}:
            if row[name] is None and name not in {"tier"}:
                assert row["details"]["missing"][name], f"{name} is null without a reason"


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_cpu_candidates_keep_the_accuracy(digits_run: DigitsRun, candidate: str) -> None:
    row = digits_run.row(candidate, "host-cpu")
    assert row["tier"] == "measured"
    assert row["accuracy"] > 0.95
    assert row["accuracy_drop"] <= 0.015
    assert row["latency_ms"]["p50"] > 0
    assert row["latency_ms"]["count"] >= 20


@pytest.mark.parametrize("candidate", INTEGER)
def test_int8_runs_in_integer_and_agrees_with_its_twin(digits_run: DigitsRun, candidate: str) -> None:
    row = digits_run.row(candidate, "host-cpu")
    assert row["integer_share"] == 1.0
    assert row["agreement"] >= 0.995
    executed = row["details"]["evaluation"]["executed_operators"]
    assert executed["QLinearConv"] == 4
    assert "Conv" not in executed


def test_float_runs_in_float(digits_run: DigitsRun) -> None:
    row = digits_run.row("fp32", "host-cpu")
    assert row["integer_share"] == 0.0
    assert row["speedup"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}


def test_quantized_files_are_smaller(digits_run: DigitsRun) -> None:
    sizes = {c: digits_run.row(c, "host-cpu")["file_bytes"] for c in CANDIDATES}
    assert sizes["int8-ptq"] < 0.35 * sizes["fp32"]
    assert sizes["slim-qat"] < 0.4 * sizes["slim"]
    assert digits_run.row("slim", "host-cpu")["macs"] < 0.35 * digits_run.row("fp32", "host-cpu")["macs"]


@pytest.mark.parametrize("candidate", INTEGER)
def test_fpga_rows_are_estimates(digits_run: DigitsRun, candidate: str) -> None:
    row = digits_run.row(candidate, "zcu104")
    assert row["tier"] == "estimated"
    assert row["details"]["fits"] is True
    fpga = row["details"]["fpga"]
    for name in ("lut", "dsp", "bram"):
        use = fpga["resources"][name]
        assert use["estimate"] <= use["high"] <= use["usable"]
    assert row["latency_ms"]["p50"] == pytest.approx(fpga["cycles"] / 200e3, rel=1e-3)
    assert row["agreement"] >= 0.995
    assert row["speedup"] is None
    emulation = row["details"]["evaluation"]["emulation"]
    assert emulation["identical"] == emulation["samples"] > 0


def test_absent_gpu_says_why(digits_run: DigitsRun) -> None:
    rows = [r for r in digits_run.record["results"] if r["target"] == "nvidia-l4"]
    if rows[0]["status"] == "ok":
        pytest.skip("there is a GPU with TensorRT here")
    assert all(r["status"] == "unavailable" and r["latency_ms"] is None for r in rows)
    assert "tensorrt" in rows[0]["reason"]
    assert "pip install" in rows[0]["details"]["fix"]
    assert any("nvidia-l4" in text for text in digits_run.record["not_checked"])


def test_scheme_is_the_hosts_and_says_why(digits_run: DigitsRun) -> None:
    row = digits_run.row("int8-ptq", "host-cpu")
    host = digits_run.record["environment"]["host_profile"]
    assert row["scheme"] == host
    assert row["details"]["scheme"]["why"]
    if host == "x86-avx2":
        assert "[-64, 63]" in row["details"]["scheme"]["weights"]


def test_second_run_does_no_finished_work(digits_run: DigitsRun) -> None:
    start = time.monotonic()
    outcome = hwopt("pipeline", "run", "pipelines/digits.yaml", "--store", digits_run.store, "--json", "-q")
    # The promise is 5 s on a quiet machine; every step cached is what makes it so.
    assert {step["status"] for step in outcome.json["steps"]} == {"cached"}
    assert outcome.json["results"] == digits_run.record["results"]
    assert time.monotonic() - start < 30


def test_runs_and_reports_tell_the_same(digits_run: DigitsRun, tmp_path: Path) -> None:
    run = digits_run.record["run"]
    shown = hwopt("runs", "show", run, "--store", digits_run.store, "--json")
    assert shown.json == digits_run.record
    assert run in hwopt("runs", "list", "--store", digits_run.store).out
    assert json.loads(hwopt("report", run, "--format", "json", "--store", digits_run.store).out) == shown.json
    page = hwopt("report", run, "--store", digits_run.store).out
    assert page == (digits_run.store / "runs" / run / "report.html").read_text()
    planned = hwopt("pipeline", "plan", "pipelines/digits.yaml", "--store", digits_run.store, "--json").json
    assert all(step["finished"] for step in planned["steps"])


PROFILE = """\
name: small
data: {name: digits}
model: {name: cnn, width: 8}
train: {epochs: 2}
candidates:
  fp32: []
  int8: [{quantize: {method: ptq}}]
targets: [host-cpu]
benchmark: {budget_seconds: 0.5}
"""


@pytest.mark.slow
def test_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE)
    command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "pipeline", "run", "p.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "[3/" in line:  # training and the first export are done
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert not list((tmp_path / ".hwopt" / "runs").glob("*/record.json"))
    outcome = hwopt("pipeline", "run", "p.yaml", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    statuses = {step["label"]: step["status"] for step in outcome.json["steps"]}
    assert statuses["train the float model"] == "cached"
    assert statuses["evaluate int8 on host-cpu"] == "ok"


def test_interrupt_is_130_and_resumable(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE)
    command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "pipeline", "run", "p.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    assert "[1/" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_it_works_from_any_folder_on_the_users_own_npz_and_model(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def build(sample_shape, classes, hidden=32):\n"
        "    n, h = sample_shape[0] * sample_shape[1] * sample_shape[2], hidden\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(n, h), nn.ReLU(), nn.Linear(h, classes))\n"
        "def digits():\n"
        "    from sklearn.datasets import load_digits\n"
        "    x, y = load_digits(return_X_y=True)\n"
        "    x = (x.reshape(-1, 8, 8) * 15).astype('uint8')\n"
        "    return {'x_train': x[:1000], 'y_train': y[:1000], 'x_test': x[1000:], 'y_test': y[1000:]}\n"
    )
    text = PROFILE.replace("{name: digits}", "{factory: 'nets:digits'}").replace(
        "{name: cnn, width: 8}", "{factory: 'nets:build', hidden: 24}"
    )
    (tmp_path / "p.yaml").write_text(text.replace("epochs: 2", "epochs: 20, optimizer: {lr: 0.01}"))
    outcome = hwopt(
        "pipeline", "run", tmp_path / "p.yaml", "--json", "--store", tmp_path / "s", cwd=Path("/")
    )
    assert outcome.code == 0, outcome.err
    rows = outcome.json["results"]
    assert rows[0]["parameters"] == 64 * 24 + 24 + 24 * 10 + 10
    assert rows[0]["accuracy"] > 0.8
    assert rows[1]["integer_share"] == 1.0
    # An edited model is trained anew.
    source = (tmp_path / "nets.py").read_text()
    (tmp_path / "nets.py").write_text(source.replace("nn.ReLU()", "nn.LeakyReLU(0.1)"))
    again = hwopt("pipeline", "plan", tmp_path / "p.yaml", "--json", "--store", tmp_path / "s").json
    assert not any(step["finished"] for step in again["steps"])


@pytest.mark.slow
def test_failing_candidate_does_not_take_the_others_along(tmp_path: Path) -> None:
    diverging = "finetune: {optimizer: {name: sgd, lr: 100.0}, clip_norm: null, distill: null, halvings: 0}"
    text = PROFILE.replace("  int8:", f"  broken: [{{{diverging}}}]\n  int8:")
    (tmp_path / "p.yaml").write_text(text)
    outcome = hwopt("pipeline", "run", "p.yaml", "--json", cwd=tmp_path)
    assert outcome.code == 5
    status = {row["candidate"]: row["status"] for row in outcome.json["results"]}
    assert status == {"fp32": "ok", "broken": "failed", "int8": "ok"}
    broken = next(r for r in outcome.json["results"] if r["candidate"] == "broken")
    assert "the loss became" in broken["reason"]
    assert broken["accuracy"] is None
    assert "train.optimizer.lr" in broken["details"]["fix"]
    shown = hwopt("runs", "show", "latest", cwd=tmp_path).out
    assert "note: broken on host-cpu failed: finetune: " in shown


@pytest.mark.slow
@pytest.mark.needs_data("mnist")
def test_mnist(tmp_path: Path) -> None:
    outcome = hwopt("pipeline", "run", "pipelines/mnist.yaml", "--store", tmp_path, "--json", cwd=ROOT)
    rows = {(r["candidate"], r["target"]): r for r in outcome.json["results"]}
    assert rows["fp32", "host-cpu"]["accuracy"] >= 0.985
    assert rows["int8-qat", "host-cpu"]["accuracy_drop"] <= 0.003
    assert rows["int8-qat", "host-cpu"]["agreement"] >= 0.999
    assert rows["int8-qat", "host-cpu"]["integer_share"] == 1.0
