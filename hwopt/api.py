"""The rooms without the pipeline: what ``import hwopt`` offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from hwopt.checkpoints import quantized_twin
from hwopt.core.backend import BackendSpec, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.engine.single import device, runtime_of
from hwopt.errors import ConfigError
from hwopt.model_check import check_model
from hwopt.plugins import load_reference, resolve
from hwopt.quantization.insert import calibrate
from hwopt.stages.benchmark.run import measure
from hwopt.stages.benchmark.spec import BenchmarkConfig


def quantize(model: nn.Module, *, hardware: str, calibration: Tensor, batch_size: int = 64) -> fx.GraphModule:
    """The fake-quantized twin of ``model`` under a device's scheme, calibrated: PTQ. Train it on for QAT.

    Args:
        model: a float module with one input, batch first; it is not changed.
        hardware: name of a hardware profile, ``host-cpu``, or the path of a YAML file.
        calibration: samples, batch first.
    """
    if len(calibration) == 0:
        raise ConfigError("the calibration set is empty", fix="give at least one sample")
    if not bool(torch.isfinite(calibration).all()):
        raise ConfigError("the calibration set holds NaN or infinity", fix="remove those samples")
    scheme = device(hardware).quantization
    twin, _ = quantized_twin(model, tuple(calibration.shape[1:]), scheme)
    calibrate(twin, torch.split(calibration, batch_size))
    return twin


def benchmark(
    models: Sequence[str | Path],
    *,
    target: str = "host-cpu",
    batch: int = 1,
    threads: int = 1,
    budget_seconds: float = 6.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure ONNX files on a device that is here; the first is the baseline of the others.

    Returns:
        JSON with one entry a model: latency in ms, speed-up over the first with its interval, executed
        operators, and the share of weighted operators that run in integer.
    """
    hardware = device(target)
    paths = [Path(model) for model in models]
    for path in paths:
        check_model(path)
    config = BenchmarkConfig(
        runtime=runtime_of(hardware), batch=batch, threads=threads, budget_seconds=budget_seconds
    )
    sample = _random_input(paths[0], config, hardware, seed)
    results: list[JSON] = []
    for index, path in enumerate(paths):
        facts, _ = measure(
            path, paths[0] if index else None, sample=sample, config=config, hardware=hardware, seed=seed
        )
        backend: BackendSpec = resolve("backend", str(config.runtime))
        runtime = load_reference(backend.load)(path, Recipe(threads=threads), hardware)
        nodes = runtime.executed()
        runtime.close()
        weighted = [node for node in nodes if node.weighted]
        results.append(
            {
                "model": str(path),
                "tier": Tier.MEASURED.value,
                **facts,
                "file_bytes": path.stat().st_size,
                "integer_share": sum(n.integer for n in weighted) / len(weighted) if weighted else None,
            }
        )
    return {"schema_version": 1, "target": target, "device": hardware.name, "results": results}


def _random_input(path: Path, config: BenchmarkConfig, hardware: HardwareProfile, seed: int) -> Array:
    backend: BackendSpec = resolve("backend", str(config.runtime))
    runtime = load_reference(backend.load)(path, Recipe(), hardware)
    shapes = runtime.inputs()
    runtime.close()
    if len(shapes) != 1:
        raise ConfigError(
            f"the model has {len(shapes)} inputs: {', '.join(shapes)}",
            where=str(path),
            fix="models with one float32 input can be measured so far",
        )
    ((_, shape),) = shapes.items()
    if any(size is None for size in shape[1:]):
        raise ConfigError(
            f"the input has the shape {list(shape)}: only the first axis may be dynamic", where=str(path)
        )
    full = (shape[0] or config.batch, *(int(size or 1) for size in shape[1:]))
    return np.random.default_rng(seed).random(full, dtype=np.float32)
