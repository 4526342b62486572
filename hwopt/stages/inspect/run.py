"""Look at the file, then try it in a process of its own: a runtime that dies of a wrong input is a finding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwopt.core.artifact import Artifact
from hwopt.core.backend import Recipe
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import ConfigError, HwoptError, StageFailedError
from hwopt.model_check import check_model
from hwopt.model_lint import contract, lint
from hwopt.prediction.predict import peak
from hwopt.prediction.work import kernels
from hwopt.processes import Child, Limits
from hwopt.stages.inspect.spec import InspectConfig

_PROBE_SECONDS = 300.0


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: InspectConfig) -> StageResult:
    """Contract, findings, behaviour and roofline of one deployed file."""
    if ctx.hardware is None:
        raise StageFailedError("inspect needs a device")
    path = inputs["model"].path
    check_model(path)
    findings = lint(path, ctx.hardware)
    x = ctx.data().x_test[: config.max_batch]
    facts: dict[str, JSON] = {
        "model_digest": inputs["model"].digest,
        "contract": contract(path),
        "findings": [finding.to_json() for finding in findings],
        "robustness": robustness(path, x, config, ctx.hardware, ctx.workdir),
        "roofline": roofline(path, ctx.hardware, config.threads),
    }
    table = ctx.workdir / "inspection.json"
    table.write_text(pretty_json(facts))
    ctx.progress(f"inspect: {sum(f.level == 'error' for f in findings)} errors, {len(findings)} findings")
    return StageResult(files={"report": table}, facts={"inspection": facts})


def robustness(
    path: Path, x: Array, config: InspectConfig, hardware: HardwareProfile, workdir: Path
) -> dict[str, Any] | None:
    """What became of unusual inputs and of many calls; None where no runtime executes the file on the device."""
    if config.runtime is None or hardware.kind is DeviceKind.FPGA:
        return None
    feed = workdir / "feed.npz"
    np.savez(feed, x=x)
    recipe = Recipe(threads=config.threads, spinning=config.spinning)
    asked: dict[str, Any] = {
        "runtime": config.runtime,
        "model": str(path),
        "recipe": recipe.to_json(),
        "hardware": hardware.to_json(),
        "feed": str(feed),
        "max_batch": config.max_batch,
    }
    found: dict[str, Any] = {}
    limits = Limits(seconds=_PROBE_SECONDS)
    child = Child("hwopt.stages.inspect.probe", threads=config.threads, limits=limits)
    try:
        for probe in ("batches", "wrong_type", "wrong_shape", "not_a_number", "again", "together", "soak"):
            if probe == "soak" and not config.soak_seconds:
                continue
            if not child.alive:
                child.close()
                child = Child("hwopt.stages.inspect.probe", threads=config.threads, limits=limits)
            try:
                soak = config.soak_seconds if probe == "soak" else 0.0
                found[probe] = child.ask(
                    probe, more_seconds=2 * soak, label=path.name, soak_seconds=soak, **asked
                )
            except HwoptError as error:
                found[probe] = {"ok": False, "why": error.problems[0].problem}
    finally:
        child.close()
    return found


def roofline(path: Path, hardware: HardwareProfile, threads: int) -> dict[str, JSON] | None:
    """Work and traffic of every kernel, and what the device could do at most; None where no figure is known."""
    compute, memory = hardware.compute, hardware.memory
    if compute is None or memory is None or memory.bandwidth_gbs is None:
        return None
    try:
        found = kernels(onnx.load(path))
        peaks = {dtype: peak(hardware, dtype, threads) / 1e9 for dtype in ("fp32", "int8")}
    except (ConfigError, StageFailedError) as error:
        return {"missing": error.problems[0].problem}
    return {
        "tier": "estimated",
        "device": hardware.title,
        "threads": threads,
        "peak_gops": dict[str, JSON](peaks),
        "bandwidth_gbs": memory.bandwidth_gbs,
        "kernels": [
            {"name": k.name, "kind": k.kind, "dtype": k.dtype, "ops": 2 * k.macs, "bytes": k.bytes}
            for k in found
            if k.macs
        ],
    }
