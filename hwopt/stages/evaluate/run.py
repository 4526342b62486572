"""Accuracy of the deployed model, agreement with its torch twin, and what precision really ran."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from hwopt.comparison import as_written, side_by_side
from hwopt.core.artifact import Artifact
from hwopt.core.backend import BackendSpec, Optimization, Recipe, Runtime
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind
from hwopt.core.measurement import Interval, Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.integer_check import asked_for_integer, float_operators
from hwopt.numerics.classification import f1_interval, f1_score
from hwopt.numerics.intervals import paired_drop_interval, wilson_interval
from hwopt.numerics.scales import sqnr_db
from hwopt.plugins import load_reference, resolve
from hwopt.stages.evaluate.spec import EvaluateConfig

_BATCH = 64


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: EvaluateConfig) -> StageResult:
    """Run the whole test split through the runtime."""
    if ctx.hardware is None:
        raise StageFailedError("evaluate needs a device")
    backend: BackendSpec = resolve("backend", config.runtime)
    recipe = Recipe(
        threads=config.threads, spinning=config.spinning, hint=config.hint, optimization=config.optimization
    )
    runtime: Runtime = load_reference(backend.load)(inputs["model"].path, recipe, ctx.hardware)
    try:
        x = ctx.data().x_test
        ((name, shape),) = runtime.inputs().items()
        size = shape[0] or _BATCH
        logits = np.concatenate([runtime.run({name: x[i : i + size]})[0] for i in range(0, len(x), size)])
        nodes = runtime.executed() if config.optimization is Optimization.ALL else []
    finally:
        runtime.close()
    lost = float_operators(asked_for_integer(inputs["model"].path), nodes) if nodes else []
    if lost and not config.allow_float:
        raise StageFailedError(
            f"{config.runtime} runs {len(lost)} operators in float that the model asks to run in integer: "
            + "; ".join(f"{a.op} {a.name} ({a.suspicion})" for a in lost[:5])
            + ("; …" if len(lost) > 5 else ""),
            fix="keep them in float with quantize.rules, or accept it with quantize.allow_float: true",
        )
    emulated = ctx.hardware.kind is DeviceKind.FPGA
    against = side_by_side(logits, as_written(inputs["model"].path, x)) if emulated else None
    if not np.isfinite(logits).all():
        raise StageFailedError("the deployed model gives NaN or infinity on the test split")
    twin, labels = _predictions(inputs["twin"])
    float_twin, _ = _predictions(inputs["float_twin"])
    predicted = logits.argmax(1)
    right, float_right = predicted == labels, float_twin.argmax(1) == labels
    n = len(labels)
    drop = Interval(*paired_drop_interval(float_right, right))
    low, high = wilson_interval(int(right.sum()), n)
    weighted = [node for node in nodes if node.weighted]
    share = sum(node.integer for node in weighted) / len(weighted) if weighted else None
    table = ctx.workdir / "nodes.json"
    rows: list[JSON] = [
        {"name": n.name, "op": n.op, "integer": n.integer, "weighted": n.weighted} for n in nodes
    ]
    table.write_text(pretty_json(rows))
    accuracy = float(right.mean())
    ctx.progress(f"evaluate: accuracy {accuracy:.2%} on {n} test samples")
    predictions = ctx.workdir / "predictions.npz"
    np.savez_compressed(predictions, logits=logits.astype(np.float32), labels=labels)
    return StageResult(
        files={"nodes": table, "predictions": predictions},
        facts={
            "tier": Tier.MEASURED.value,
            "accuracy": accuracy,
            "accuracy_drop": drop.estimate,
            "f1": f1_score(predicted, labels),
            "agreement": float((predicted == twin.argmax(1)).mean()),
            "integer_share": share,
            "evaluation": {
                "runtime": config.runtime,
                "model_digest": inputs["model"].digest,
                "samples": n,
                "accuracy_interval": {"low": low, "high": high},
                "accuracy_drop_interval": drop.to_json(),
                "f1_interval": dict(zip(("low", "high"), f1_interval(predicted, labels), strict=True)),
                "sqnr_db": _decibels(twin, logits),
                "asked_but_float": [a.to_json() for a in lost],
                "float_operators": [node.op + " " + node.name for node in weighted if not node.integer],
                "layers": [{"name": node.name, "op": node.op, "integer": node.integer} for node in weighted],
                "executed_operators": _census([node.op for node in nodes]),
                "arithmetic": "the design's own integers and shifts, emulated bit by bit"
                if emulated
                else f"{config.runtime}, as deployed",
                "emulation": against,
                "classes": len(np.unique(labels)),
                "slices": slices(labels, right, float_right),
                "parity": parity(twin, logits),
                "seen_in_training": seen(x, ctx.data().x_train),
            },
        },
    )


def slices(labels: Array, right: Array, float_right: Array) -> list[JSON]:
    """Accuracy of each class, of this version and of the float model; the worst drop first, 95 % for all together."""
    found: list[tuple[float, int, dict[str, JSON]]] = []
    kinds = np.unique(labels)
    for label in kinds:
        mine: Array = labels == label
        accuracy, before = float(right[mine].mean()), float(float_right[mine].mean())
        _, low, high = paired_drop_interval(float_right[mine], right[mine], 1 - 0.05 / len(kinds))
        one: dict[str, JSON] = {
            "class": int(label),
            "samples": int(mine.sum()),
            "accuracy": accuracy,
            "float_accuracy": before,
            "drop": before - accuracy,
            "low": low,
            "high": high,
        }
        found.append((accuracy - before, int(label), one))
    return [one for _, _, one in sorted(found, key=lambda entry: entry[:2])]


def parity(twin: Array, logits: Array, shown: int = 5) -> dict[str, JSON]:
    """How far the deployed outputs are from those of the torch network, and the samples where it is most."""
    gap = np.abs(twin.astype(np.float64) - logits).reshape(len(twin), -1).max(axis=1)
    worst = np.argsort(-gap, kind="stable")[:shown]
    scale = float(np.abs(twin).max()) or 1.0
    return {
        "max_abs": float(gap.max()),
        "mean_abs": float(gap.mean()),
        "of_largest": float(gap.max()) / scale,
        "worst": [
            {
                "sample": int(i),
                "max_abs": float(gap[i]),
                "predicted": int(logits[i].argmax()),
                "twin": int(twin[i].argmax()),
            }
            for i in worst
        ],
    }


def seen(test: Array, train: Array) -> int:
    """Test samples that are byte for byte in the training split, which calibration draws from."""
    wanted = Counter(_short(row) for row in np.ascontiguousarray(test))
    found = {digest for row in np.ascontiguousarray(train) if (digest := _short(row)) in wanted}
    return sum(wanted[digest] for digest in found)


def _short(row: Array) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _predictions(artifact: Artifact) -> tuple[Array, Array]:
    with np.load(artifact.path, allow_pickle=False) as archive:
        return archive["logits"], archive["labels"]


def _decibels(reference: Array, given: Array) -> float | None:
    value = sqnr_db(reference, given)
    return value if np.isfinite(value) else None


def _census(names: list[str]) -> dict[str, JSON]:
    return {name: names.count(name) for name in sorted(set(names))}
