"""Look at a model file, and ask a device's compiler or runtimes whether they take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from hwopt.api.bench import serves
from hwopt.api.options import Options, feed_of
from hwopt.core.backend import BackendSpec
from hwopt.core.canonical import JSON
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.engine.prepare import probe
from hwopt.engine.single import device, runtime_of
from hwopt.errors import EngineMissingError, HwoptError
from hwopt.latency.measure import Candidate, look_inside
from hwopt.latency.workers import Process
from hwopt.model_check import check_model
from hwopt.model_lint import lint
from hwopt.plugins import resolve, table
from hwopt.quantization.onnx_net import signature


def check(model: str | Path, *, target: str | None = None, batch: int = 1) -> dict[str, Any]:
    """Whether a file is a sound ONNX model and, for a target, whether it can be deployed there.

    For a GPU an engine is built, with no GPU needed: tier ``compiled``, and never a latency. For a CPU, which
    must be this machine, every runtime that is here loads and runs it.

    Returns:
        JSON; ``accepted`` is null without a target, else whether a compiler or runtime takes the file.
    Raises:
        UnsafeInputError: the file is no sound model.
        EngineMissingError: what is needed for this target is not installed, or no compiler serves it.
    """
    path = Path(model)
    check_model(path)
    proto = onnx.load(path)
    shapes, dtypes = signature(proto)
    stored = {i.name for i in proto.graph.initializer}
    found: dict[str, Any] = {
        "schema_version": 1,
        "model": str(path),
        "file_bytes": path.stat().st_size,
        "opset": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "inputs": {n: [str(dtypes[n]), list(s)] for n, s in shapes.items() if n not in stored},
        "operators": _census(proto),
        "findings": [finding.to_json() for finding in lint(path, None if target is None else device(target))],
        "target": target,
        "accepted": None,
    }
    if target is None:
        return found
    hardware = device(target)
    found["device"] = hardware.name
    if hardware.kind is DeviceKind.CPU:
        return found | _loaded(path, hardware)
    return found | _compiled(path, hardware, batch)


def _census(model: onnx.ModelProto) -> dict[str, JSON]:
    names = [node.op_type for node in model.graph.node]
    return {name: names.count(name) for name in sorted(set(names))}


def _compiled(path: Path, hardware: HardwareProfile, batch: int) -> dict[str, Any]:
    specs: list[BackendSpec] = [resolve("backend", name) for name in table("backend")]
    compilers = [spec for spec in specs if spec.compiles is not None and hardware.kind in spec.kinds]
    if not compilers:
        raise EngineMissingError(
            f"no compiler builds for a {hardware.kind.value} that is not here",
            fix="for an FPGA, estimate the design: run a pipeline with that target",
        )
    (spec, *_) = compilers
    state = probe(spec.name)
    if not state.available:
        raise EngineMissingError(f"{spec.title}: {state.reason}", fix=state.fix)
    with Process(1) as process:
        answer = process.ask(
            "compile",
            backend=spec.name,
            hardware=hardware.to_json(),
            model=str(path.resolve()),
            batch=batch,
        )
    return {"tier": Tier.COMPILED.value, "batch": batch, **answer["compiled"]}


def _loaded(path: Path, hardware: HardwareProfile) -> dict[str, Any]:
    """What the runtimes that are here make of the file; this machine must be such a device."""
    runtime_of(hardware)
    feed = feed_of(path, Options())
    runtimes: dict[str, JSON] = {}
    for name in table("backend"):
        if not serves(name, hardware) or not probe(name).available:
            continue
        try:
            inside = look_inside(Candidate(model=path, runtime=name, hardware=hardware, feed=feed))
        except HwoptError as error:
            runtimes[name] = {"accepted": False, "reason": error.problems[0].problem}
            continue
        weighted = [node for node in inside.nodes if node.weighted]
        share = sum(node.integer for node in weighted) / len(weighted) if weighted else None
        runtimes[name] = {"accepted": True, "integer_share": share}
    accepted = any(isinstance(one, dict) and one["accepted"] for one in runtimes.values())
    return {"accepted": accepted, "runtimes": runtimes}
