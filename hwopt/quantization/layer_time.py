"""How long each layer takes in ONNX Runtime, by its own profiler: what a latency budget is made of."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime

from hwopt.errors import StageFailedError
from hwopt.quantization.onnx_net import Batch

_RUNS: Final = 60
_NEIGHBOURS: Final = 4  # runs of one side that are timed as one


def layer_times(
    model: onnx.ModelProto, call: Batch, layers: Sequence[tuple[str, str]]
) -> tuple[dict[str, float], float]:
    """Seconds of each layer and of the whole model; medians, one thread.

    ONNX Runtime renames operators and weights as it optimizes, and keeps their order: the n-th convolution of
    the file is the n-th that it executes, and likewise for products.

    Args:
        layers: (name of the weight, ONNX type) of all layers with weights, in the order of the file.
    Raises:
        StageFailedError: the runtime executes another number of layers, so that times belong to none of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # that the written graph belongs to this machine is known
        options.optimized_model_filepath = str(optimized)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(_RUNS):
            session.run(None, dict(call))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
        nodes = list(onnx.load(optimized).graph.node)
    seen: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            seen.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e6)
    medians = {node: statistics.median(times) for node, times in seen.items()}
    found: dict[str, float] = {}
    for family in ("Conv", "MatMul"):
        asked = [name for name, kind in layers if _family(kind) == family]
        ran = [node.name for node in nodes if _family(node.op_type) == family and _has_weights(node, nodes)]
        if len(asked) != len(ran):
            raise StageFailedError(
                f"ONNX Runtime executes {len(ran)} {family} layers, and the model has {len(asked)}",
                fix="leave out the latency budget; budget layers or bytes",
            )
        found |= {name: medians.get(node, 0.0) for name, node in zip(asked, ran, strict=True)}
    return found, sum(medians.values())


def latency_ratio(model: onnx.ModelProto, baseline: onnx.ModelProto, call: Batch) -> float:
    """Median ratio of neighbouring runs of the two, each side first in turn; one thread."""
    sessions = []
    for proto in (model, baseline):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        sessions.append(
            onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        )
    ratios = []
    for index in range(_RUNS + 5):
        times = {}
        for side in (0, 1) if index % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(_NEIGHBOURS):
                sessions[side].run(None, dict(call))
            times[side] = time.perf_counter() - start
        if index >= 5:
            ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def _family(op: str) -> str | None:
    if "Conv" in op:
        return "Conv"
    return "MatMul" if "MatMul" in op or "Gemm" in op else None


def _has_weights(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether the second operand is stored, be it rearranged or behind a DequantizeLinear."""
    makers = {output: maker for maker in nodes for output in maker.output}
    slot = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}.get(node.op_type, 1)
    name = node.input[slot]
    while name in makers and makers[name].op_type == "DequantizeLinear":
        name = makers[name].input[0]
    return name not in makers
