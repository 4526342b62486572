"""Time the micro-suite on this machine and fit what its kernels cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from hwopt.core.backend import Recipe
from hwopt.core.hardware import Calibration, HardwareProfile
from hwopt.core.stage import Progress
from hwopt.latency.measure import Candidate, Effort, measure_all
from hwopt.prediction.fit import CALL, Fit, Timed, fit
from hwopt.prediction.suite import networks, quantized
from hwopt.prediction.work import kernels

_GROUP: Final = 12  # models that are timed in the same rounds
_SECONDS: Final = 2.0  # of rounds, a group
_UNITS: Final = {"macs": 1e12, "bytes": 1e12, "gather": 1e12, "each": 1e9}


def calibrate(
    hardware: HardwareProfile, runtime: str, version: str, cpu: str, threads: int, progress: Progress
) -> Calibration:
    """Costs of every kind of kernel, from some hundred small networks; about two minutes."""
    floats = list(networks())
    models = [*floats, *(quantized(model, hardware.quantization) for model in floats)]
    multiples: list[float] = []
    references: list[float] = []
    for start in range(0, len(models), _GROUP):
        found, reference = _timed(models[start : start + _GROUP], hardware, runtime, threads)
        multiples += found
        references.append(reference)
        progress(f"calibrate: {min(start + _GROUP, len(models))} of {len(models)} networks timed")
    reference = float(np.median(references))
    # As multiples of the reference workload, so that a drift of the machine between groups does not matter.
    timed = [
        Timed(kernels=tuple(kernels(model)), seconds=multiple * reference)
        for model, multiple in zip(models, multiples, strict=True)
    ]
    return _calibration(fit(timed), cpu, f"{runtime} {version}", threads, reference, len(models))


def _timed(
    models: Sequence[onnx.ModelProto], hardware: HardwareProfile, runtime: str, threads: int
) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for index, model in enumerate(models):
            path = Path(folder) / f"{index}.onnx"
            path.write_bytes(model.SerializeToString())
            (value,) = model.graph.input
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            x = np.random.default_rng(index).random(shape, dtype=np.float32)
            sides.append(
                Candidate(
                    model=path,
                    runtime=runtime,
                    hardware=hardware,
                    feed={value.name: x},
                    recipe=Recipe(threads=threads),
                )
            )
        effort = Effort(budget_seconds=_SECONDS, half_width=1e-9, samples=0)
        rounds = measure_all(sides, effort).rounds
    last = len(models)
    multiples = [rounds.compare(last, side).interval().estimate for side in range(last)]
    return multiples, rounds.seconds(last)


def _calibration(
    found: Fit, cpu: str, runtime: str, threads: int, reference: float, models: int
) -> Calibration:
    costs: dict[str, dict[str, float]] = {}
    for (key, feature), seconds in found.costs.items():
        if key != CALL:
            costs.setdefault(key, {})[feature] = round(seconds * _UNITS[feature], 6)
    return Calibration(
        cpu=cpu,
        runtime=runtime,
        threads=threads,
        reference_ms=round(reference * 1e3, 6),
        call_us=round(found.costs.get((CALL, "each"), 0.0) * 1e6, 6),
        costs=costs,
        spread=round(found.spread, 4),
        models=models,
    )
