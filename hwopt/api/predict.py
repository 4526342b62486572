"""How fast models would be on a device that is not here, and calibrating one that is."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, exp, log, sqrt
from pathlib import Path
from typing import Any

import onnx

from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine import host as this_host
from hwopt.engine.prepare import probe
from hwopt.engine.single import device, runtime_of
from hwopt.errors import ConfigError
from hwopt.model_check import check_model
from hwopt.prediction.calibrate import calibrate as run_suite
from hwopt.prediction.predict import Prediction
from hwopt.prediction.predict import predict as predict_kernels
from hwopt.prediction.work import kernels, unpriced

_Z90 = 1.6449  # of the standard normal: nine out of ten lie within


def predict(models: Sequence[str | Path], *, target: str, batch: int = 1, threads: int = 1) -> dict[str, Any]:
    """Predicted latency of ONNX files; nothing is run, and nothing here can pass a gate alone.

    Returns:
        JSON with one entry a file: latency with its interval, where the time goes, whether it fits into the
        device's memory; and for every further file its speed over the first, with the probability that it is
        the faster one under the model's own error.
    Raises:
        ConfigError: the device's profile does not say how fast it is.
    """
    hardware = device(target)
    found = [_one(Path(model), hardware, batch, threads) for model in models]
    first = found[0][1]
    rows: list[JSON] = []
    for index, (row, prediction) in enumerate(found):
        rows.append(row | ({"over_the_first": _ratio(first, prediction)} if index else {}))
    return {
        "schema_version": 1,
        "tier": Tier.PREDICTED.value,
        "target": target,
        "device": hardware.name,
        "batch": batch,
        "results": rows,
    }


def _one(
    path: Path, hardware: HardwareProfile, batch: int, threads: int
) -> tuple[dict[str, JSON], Prediction]:
    check_model(path)
    found = kernels(onnx.load(path), batch)
    prediction = predict_kernels(found, hardware, batch, threads)
    weights, most = path.stat().st_size, max((kernel.bytes for kernel in found), default=0)
    memory = hardware.memory.capacity_gb if hardware.memory else None
    return {
        "model": str(path),
        "file_bytes": weights,
        "macs": sum(kernel.macs for kernel in found),
        "kernels": len(found),
        # An estimate: the file, and the greatest kernel's tensors twice.
        "fits_in_memory": None if memory is None else weights + 2 * most < memory * 1e9,
        "priced_by_traffic_alone": list[JSON](unpriced(found)),
        **prediction.to_json(),
    }, prediction


def _ratio(first: Prediction, other: Prediction) -> JSON:
    """Errors of two models on one device are taken as independent: the careful side."""
    ratio = first.seconds.estimate / other.seconds.estimate
    sigma = sqrt(log(first.spread) ** 2 + log(other.spread) ** 2) / _Z90
    faster = 0.5 * (1 + erf(log(ratio) / sigma / sqrt(2)))
    factor = exp(sigma * _Z90)
    return {"speedup": {"estimate": ratio, "low": ratio / factor, "high": ratio * factor}, "faster": faster}


def calibrate(target: str = "host-cpu", *, threads: int = 1, progress: Progress = silent) -> HardwareProfile:
    """The device's profile with what its kernels cost, from a micro-suite that runs on this machine.

    Raises:
        ConfigError: the device is no CPU.
        EngineMissingError: it is not this machine.
    """
    hardware = device(target)
    if hardware.kind is not DeviceKind.CPU:
        raise ConfigError(
            f"{hardware.name} is no CPU; calibration runs on CPUs so far", fix="--target host-cpu"
        )
    runtime = runtime_of(hardware)
    host = this_host.detect()
    found = run_suite(hardware, runtime, probe(runtime).version or "", host.cpu, threads, progress)
    return hardware.model_copy(update={"calibration": found})
