from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from hwopt.report.curve import curves, standalone
from hwopt.report.learning import learning, notes


def record(**events: Any) -> dict[str, Any]:
    history = [
        {
            "epoch": k,
            "train_loss": 1 / k,
            "validation_loss": 1.1 / k,
            "train_accuracy": 0.5,
            "validation_accuracy": 0.4,
            "lr": 0.1,
        }
        for k in (1, 2, 3)
    ]
    given = {"int8_readiness": {}, "alarms": [], "halvings": [], **events}
    return {"training": {"history": history, "training_events": given}}


def test_nothing_trained_nothing_said() -> None:
    for empty in ({}, {"training": None}):
        assert learning(empty) is None
        assert notes(empty) == []


def test_curves_are_those_of_the_history() -> None:
    found = learning(record())
    assert found is not None
    tree = ElementTree.fromstring(str(found["loss"]))
    assert len(tree.findall("polyline")) == 2
    assert {"train", "validation"} <= {t.text for t in tree.findall("text")}


def test_notes_name_layer_step_and_knob() -> None:
    alarm = {
        "kind": "dead",
        "step": 50,
        "layer": "2",
        "value": 0.6,
        "cause": "60% are zero",
        "knob": "lower the rate",
    }
    lines = notes(
        record(
            alarms=[alarm], halvings=[{"at": 70, "back_to": 0, "loss": None}],
            fit={"verdict": "overfitting", "why": "gap"},
            int8_readiness={
                "a": {"sqnr_db": 20.0, "outlier_ratio": 90.0}, "b": {"sqnr_db": 45.0, "outlier_ratio": 3.0},
            },
        )
    )  # fmt: skip
    assert lines == [
        "training raised an alarm: dead at step 50 in 2: 60% are zero; lower the rate",
        "training diverged at step 70 and went on from step 0 with half the learning rate",
        "training looks like overfitting: gap",
        "the weights of a will hurt in int8: 20 dB, the greatest is 90 times the root mean square",
    ]


def test_pictures_stand_alone_and_escape_names() -> None:
    svg = standalone(curves({"<b>&": [(0.0, 1.0), (1.0, 0.5)]}, "step", "loss"), "<t>")
    tree = ElementTree.fromstring(svg)
    assert tree.tag.endswith("svg")
    assert "<b>&" in [t.text for t in tree.iter() if t.tag.endswith("text")]
    assert str(curves({"one": [(0.0, 1.0)]}, "x", "y")) == ""


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0, 1e-9, 0.0], [1e6, 2e6, 5e5]])
def test_flat_and_steep_curves(values: list[float]) -> None:
    svg = str(curves({"a": list(enumerate(values))}, "x", "y"))
    assert "nan" not in svg
    ElementTree.fromstring(svg)
