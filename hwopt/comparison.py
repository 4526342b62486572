"""Proof that a deployed model computes what its reference does, in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from hwopt.core.backend import NodePrecision, Runtime
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.errors import ConfigError, StageFailedError
from hwopt.integer_check import Asked, asked_for_integer, float_operators
from hwopt.numerics.scales import sqnr_db

Call = Callable[[Mapping[str, Array]], Sequence[Array]]
_WORST: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was seen on all samples."""

    samples: int
    agreement: float | None  # share of samples with the same greatest output; None where that has no meaning
    outputs: list[dict[str, JSON]]  # signal-to-noise ratio, cosine and greatest difference, an output each
    worst: list[dict[str, JSON]]  # samples with the greatest difference in the first output
    nodes: list[NodePrecision]
    lost: list[Asked]  # asked to run in integer, and run in float

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "samples": self.samples,
            "agreement": self.agreement,
            "outputs": list[JSON](self.outputs),
            "worst_samples": list[JSON](self.worst),
            "nodes": [
                {"name": n.name, "op": n.op, "integer": n.integer, "weighted": n.weighted} for n in self.nodes
            ],
            "asked_but_float": [a.to_json() for a in self.lost],
        }


def compare(
    model: Path, runtime: Runtime, reference: Call, calls: Sequence[Mapping[str, Array]]
) -> Verification:
    """Run both on ``calls`` and read what the runtime executes.

    Args:
        model: the file that ``runtime`` has loaded.
        reference: the same inputs to the outputs that they should give.
    Raises:
        ConfigError: the two have outputs of different number or shape.
    """
    pairs = [(list(reference(call)), runtime.run(call)) for call in calls]
    counts = {(len(a), len(b)) for a, b in pairs}
    if any(a != b for a, b in counts):
        raise ConfigError(f"the reference has {min(counts)[0]} outputs, the model {min(counts)[1]}")
    for side, what in ((0, "reference"), (1, "model")):
        _must_be_finite([pair[side] for pair in pairs], what)
    exact, given = (_joined([pair[side] for pair in pairs]) for side in (0, 1))
    for a, b in zip(exact, given, strict=True):
        if a.shape != b.shape:
            raise ConfigError(f"outputs differ in shape: {list(a.shape)} and {list(b.shape)}")
    nodes = runtime.executed()
    first, other = exact[0], given[0]
    is_classes = first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
    difference = np.abs(first.astype(np.float64) - other).reshape(len(first), -1).max(axis=1)
    order = np.argsort(-difference)[:_WORST]
    return Verification(
        samples=len(first),
        agreement=float(np.mean(first.argmax(1) == other.argmax(1))) if is_classes else None,
        outputs=[_distance(a, b) for a, b in zip(exact, given, strict=True)],
        worst=[{"sample": int(i), "max_difference": float(difference[i])} for i in order],
        nodes=nodes,
        lost=float_operators(asked_for_integer(model), nodes),
    )


def _must_be_finite(outputs: Sequence[Sequence[Array]], what: str) -> None:
    for call, values in enumerate(outputs):
        for index, value in enumerate(values):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise StageFailedError(
                    f"the {what} gives NaN or infinity: output {index} of call {call}",
                    fix="look at that input; a model that overflows cannot be compared",
                )


def _joined(outputs: Sequence[Sequence[Array]]) -> list[Array]:
    """Outputs of all calls, along their first axis; scalars become one entry a call."""
    return [np.concatenate([np.atleast_1d(call[i]) for call in outputs]) for i in range(len(outputs[0]))]


def _distance(a: Array, b: Array) -> dict[str, JSON]:
    exact, given = a.astype(np.float64), b.astype(np.float64)
    decibels = sqnr_db(exact, given)
    rows, others = exact.reshape(len(exact), -1), given.reshape(len(given), -1)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    cosine = np.where(norms > 0, (rows * others).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    return {
        "sqnr_db": decibels if np.isfinite(decibels) else None,  # None is exact
        "mean_cosine": float(cosine.mean()),
        "max_difference": float(np.abs(exact - given).max()),
        "largest": float(np.abs(exact).max()),
    }


def as_written(model: Path, x: Array) -> Array:
    """First output on all samples, without a runtime's optimization.

    Raises:
        ConfigError: the model has several inputs, or the data does not fit it.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ConfigError(
            f"the model has {len(inputs)} inputs: {', '.join(i.name for i in inputs)}",
            fix="a pipeline's data feeds one; use `hwopt quantize` and `hwopt verify` with --inputs FILE.npz",
        )
    fixed = inputs[0].shape[0] if inputs[0].shape else None
    size = fixed if isinstance(fixed, int) else 256
    if len(x) % size and isinstance(fixed, int):
        raise ConfigError(
            f"the model takes batches of {size}, and the test split has {len(x)} samples",
            fix="export the model with a free batch axis",
        )
    try:
        chunks = [session.run(None, {inputs[0].name: x[i : i + size]})[0] for i in range(0, len(x), size)]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ConfigError(
            f"the data does not fit the model: {str(error).splitlines()[0]}",
            fix=f"its input {inputs[0].name} has the shape {inputs[0].shape}",
        ) from error
    logits: Array = np.concatenate(chunks)
    if not np.isfinite(logits).all():
        raise StageFailedError("the model gives NaN or infinity on the test split")
    return logits


def side_by_side(ours: Array, theirs: Array) -> dict[str, JSON]:
    """Two sets of outputs, sample by sample: how many are bit for bit the same, and how far the others lie apart."""
    a, b = (np.asarray(outputs, np.float64).reshape(len(outputs), -1) for outputs in (ours, theirs))
    return {
        "samples": len(a),
        "identical": int((a == b).all(1).sum()),
        "largest_difference": float(np.abs(a - b).max()),
        "largest_output": float(np.abs(b).max()),
        "same_argmax": int((a.argmax(1) == b.argmax(1)).sum()),
    }
