"""How long each layer takes in ONNX Runtime, by its own profiler: what a latency budget is made of."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime

from hwopt.quantization.onnx_net import Batch

_RUNS: Final = 60


def layer_times(
    model: onnx.ModelProto, call: Batch, weights: Iterable[str]
) -> tuple[dict[str, float], float]:
    """Seconds of the operator that reads each weight, and of the whole model; medians, one thread.

    Args:
        weights: names of the float weights; the quantized model stores ``NAME_codes``.
    """
    names = sorted(weights, key=len, reverse=True)  # a name may begin like another
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.optimized_model_filepath = str(optimized)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_RUNS):
            session.run(None, dict(call))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
        owner = {node.name: _layer(node, names) for node in onnx.load(optimized).graph.node}
    seen: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            seen.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e6)
    medians = {node: statistics.median(times) for node, times in seen.items()}
    found: dict[str, float] = {}
    for node, seconds in medians.items():
        layer = owner.get(node)
        if layer is not None:
            found[layer] = found.get(layer, 0.0) + seconds
    return found, sum(medians.values())


def _layer(node: onnx.NodeProto, names: Iterable[str]) -> str | None:
    """The weight that a node reads: as it is, as codes, or as a copy that the runtime rearranged."""
    for name in names:
        if any(given == name or given.startswith(f"{name}_") for given in node.input):
            return name
    return None
