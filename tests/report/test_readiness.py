"""Facts of a record → state of a check → one word."""

from __future__ import annotations

from typing import Any

import pytest

from hwopt.core.advisories import open_in
from hwopt.report.checks import dominates
from hwopt.report.readiness import SECTIONS, assess
from hwopt.report.render import render
from tests.engine.test_gate import row as gate_row
from tests.store.records import record


def row(**changes: Any) -> dict[str, Any]:
    """A version that is ready."""
    base = gate_row()
    details = base["details"]
    details["evaluation"] |= {
        "arithmetic": "onnxruntime, as deployed", "model_digest": "sha256:m", "asked_but_float": [],
        "parity": {"of_largest": 1e-6, "worst": [{"sample": 1, "max_abs": 1e-6, "predicted": 1, "twin": 1}]},
        "slices": [{"class": 0, "samples": 100, "drop": 0.0, "low": -0.01, "high": 0.01, "accuracy": 1.0,
                    "float_accuracy": 1.0}],
        "sqnr_db": None, "executed_operators": {},
        "seen_in_training": 0, "layers": [],
    }  # fmt: skip
    details["benchmark"] |= {"model_digest": "sha256:m", "first_inference_ms": 1.0, "batch": 1}
    probes = ("batches", "wrong_type", "wrong_shape", "not_a_number", "again", "together")
    details["inspection"] = {
        "model_digest": "sha256:m",
        "contract": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
                     "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 2]}],
                     "opset": {"ai.onnx": 20}, "ir_version": 10, "producer": "", "external_data": False},
        "findings": [], "robustness": {p: {"ok": True, "why": "fine"} for p in probes}, "roofline": None,
    }  # fmt: skip
    details |= {
        "steps": ["k"],
        "asked_integer": False,
        "training_cost": None,
        "scheme": {"device": "d", "weights": "w", "activations": "a", "why": "y"},
    }
    base["verdict"] = "PASS"
    base |= changes
    return base


def of(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    step = {"key": "k", "stage": "export", "label": "export a", "status": "ok", "reason": None, "seconds": 0.1,
            "outputs": {"model": {"kind": "onnx", "digest": "sha256:m", "bytes": 1000}}, "again": None}  # fmt: skip
    base = record(
        "x", choice={"t": "a"}, results=list(rows or (row(),)), steps=[step], requirements=["accuracy ≥ 0.9"],
        source={"commit": "c" * 40, "dirty": False}, data={"name": "d", "digest": "sha256:d"},
    )  # fmt: skip
    return {**base, **changes}


def word(data: dict[str, Any]) -> str:
    return str(assess(data)["verdict"])


def test_ready() -> None:
    found = assess(of())
    assert found["verdict"] == "READY", found["blocking"]
    sections: Any = found["sections"]
    assert [s["title"] for s in sections] == list(SECTIONS)
    assert len(SECTIONS) == 13


CASES: list[tuple[str, Any, str]] = [
    ("accuracy_drop_interval", {"low": 0.0, "high": 0.02}, "UNDECIDED"),
    ("accuracy_drop_interval", {"low": 0.02, "high": 0.03}, "NOT READY"),
    ("accuracy_drop_interval", None, "NOT READY"),
    ("samples", 1, "UNDECIDED"),
    ("classes", 1, "UNDECIDED"),
    ("seen_in_training", 500, "NOT READY"),
    ("seen_in_training", 1, "READY"),
    ("parity", {"of_largest": 1e-2, "worst": []}, "NOT READY"),
    ("parity", None, "UNDECIDED"),
    ("model_digest", "sha256:other", "NOT READY"),
    ("slices", [{"class": 3, "samples": 9, "drop": 0.5, "low": -0.1, "high": 0.8}], "UNDECIDED"),
    ("slices", [{"class": 1, "samples": 2, "drop": 0.5, "low": -0.1, "high": 0.8},
                {"class": 2, "samples": 9000, "drop": 0.4, "low": 0.3, "high": 0.5}], "NOT READY"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_evaluation(name: str, value: Any, expected: str) -> None:
    changed = row()
    changed["details"]["evaluation"][name] = value
    assert word(of(changed)) == expected


def test_what_was_not_looked_at_is_open() -> None:
    changed = row()
    changed["details"]["inspection"] = None
    assert word(of(changed)) == "UNDECIDED"


def test_robustness_and_lint_block() -> None:
    changed = row()
    changed["details"]["inspection"]["robustness"]["together"] = {"ok": False, "why": "3 of 40 answers"}
    assert word(of(changed)) == "NOT READY"
    changed = row()
    changed["details"]["inspection"]["findings"] = [
        {"rule": "scale-not-positive", "level": "error", "text": "s", "node": ""}
    ]
    assert word(of(changed)) == "NOT READY"


def test_estimates_do_not_make_a_device_ready() -> None:
    assert word(of(row(tier="estimated"))) == "UNDECIDED"


def test_a_benchmark_of_another_file_is_found() -> None:
    changed = row()
    changed["details"]["benchmark"]["model_digest"] = "sha256:0"
    assert word(of(changed)) == "NOT READY"


def test_contract() -> None:
    release = {"inputs": {"x": [None, 4]}, "outputs": {"y": ["n", 2]}, "max_opset": 20}
    assert word(of(release=release)) == "READY"
    assert word(of(release={**release, "max_opset": 17})) == "NOT READY"
    assert word(of(release={**release, "inputs": {"x": [None, 5]}})) == "NOT READY"
    assert word(of(release={**release, "inputs": {"z": [None, 4]}})) == "NOT READY"
    assert word(of(release={**release, "inputs": {"x": [1, 4]}})) == "NOT READY"


def test_rollout() -> None:
    assert (
        word(of(release={"rollback": "v1", "rollback_state": {"run": "r", "files": 3, "broken": 0}}))
        == "READY"
    )
    assert (
        word(of(release={"rollback": "v1", "rollback_state": {"run": "r", "files": 3, "broken": 1}}))
        == "NOT READY"
    )
    assert word(of(release={"rollback": "v1", "rollback_state": None})) == "NOT READY"
    assert word(of(release={"expires": "2020-01-01"})) == "NOT READY"


def test_no_choice_and_targets_that_are_not_here() -> None:
    assert word(of(choice={"t": None})) == "NOT READY"
    away = row(target="gpu", status="unavailable", reason="no GPU", verdict=None)
    data = of(row(), away, choice={"t": "a", "gpu": None})
    assert word(data) == "READY"
    asked = [{"metric": "speedup", "target": "gpu", "min": 1, "max": None}]
    assert word({**data, "bounds": asked}) == "NOT READY"


def test_dominated() -> None:
    other = row(candidate="b", speedup={"estimate": 3.0, "low": 2.9, "high": 3.1}, file_bytes=500)
    assert dominates(other, row())
    assert not dominates(row(), other)
    assert word(of(row(), other)) == "NOT READY"


@pytest.mark.parametrize(
    ("version", "weak"),
    [("5.29.3", True), ("5.29.5", False), ("6.30.0", True), ("6.31.1", False), ("4.25.8", False), ("3.20.0", True),
     ("7.1.0", False)],
)  # fmt: skip
def test_branches_of_a_library(version: str, weak: bool) -> None:
    assert bool(open_in({"protobuf": version})) == weak


def test_versions_before_a_release() -> None:
    assert open_in({"torch": "2.10.0rc1"})
    assert not open_in({"torch": "2.13.0+cpu"})
    assert open_in({"torch": "2.9.1"})


def test_what_comes_from_models_is_escaped() -> None:
    changed = row()
    changed["details"]["inspection"]["findings"] = [
        {"rule": "unused-weights", "level": "warning", "text": "<script>alert(1)</script>|`", "node": ""}
    ]
    page = render(of(changed), "html")
    assert "<script" not in page
    assert "&lt;script" in page
    text = render(of(changed), "md")
    assert "<script" not in text
