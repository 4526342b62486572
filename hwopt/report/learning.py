"""What a report says of the float model's training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hwopt.report.curve import curves

Record = Mapping[str, Any]
READY_DB: Final = 35.0  # signal-to-noise ratio of int8 weights below which a layer is named
_SHOWN: Final = 12


def learning(record: Record) -> dict[str, Any] | None:
    """Curves and facts for the page; None where nothing was trained."""
    details = record.get("training")
    if not details:
        return None
    history, events = details["history"], details.get("training_events", {})
    readiness = sorted(events.get("int8_readiness", {}).items(), key=lambda item: item[1]["sqnr_db"])
    ratios = events.get("update_ratio", {})
    return {
        "loss": curves(_series(history, "train_loss", "validation_loss"), "epoch", "loss"),
        "accuracy": curves(_series(history, "train_accuracy", "validation_accuracy"), "epoch", "accuracy"),
        "lr": curves(_series(history, "lr"), "epoch", "learning rate"),
        "epochs": len(history),
        "fit": events.get("fit"),
        "alarms": events.get("alarms", []),
        "halvings": events.get("halvings", []),
        "groups": events.get("parameter_groups", []),
        "clipped": events.get("clipped_share"),
        "layers": [
            {"name": name, **found, "update_ratio": ratios.get(name), "low": found["sqnr_db"] < READY_DB}
            for name, found in readiness[:_SHOWN]
        ],
        "left_out": max(0, len(readiness) - _SHOWN),
        "test": details.get("lr_range_test"),
    }


def _series(history: list[Mapping[str, Any]], *names: str) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for name in names:
        label = name.partition("_")[0] if "_" in name else name
        found[label] = [(float(e["epoch"]), float(e[name])) for e in history if e.get(name) is not None]
    return found


def notes(record: Record) -> list[str]:
    """What must not be overlooked."""
    found = learning(record)
    if found is None:
        return []
    lines = [
        f"training raised an alarm: {a['kind']} at step {a['step']}{' in ' + a['layer'] if a['layer'] else ''}: "
        f"{a['cause']}; {a['knob']}"
        for a in found["alarms"]
    ]
    lines += [
        f"training diverged at step {h['at']} and went on from step {h['back_to']} with half the learning rate"
        for h in found["halvings"]
    ]
    if found["fit"] and found["fit"]["verdict"] in {"overfitting", "underfitting"}:
        lines.append(f"training looks like {found['fit']['verdict']}: {found['fit']['why']}")
    lines += [
        f"the weights of {layer['name']} will hurt in int8: {layer['sqnr_db']:.0f} dB, the greatest is "
        f"{layer['outlier_ratio']:.0f} times the root mean square"
        for layer in found["layers"]
        if layer["low"]
    ]
    return lines
