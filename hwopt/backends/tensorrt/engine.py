"""Build TensorRT engines: strongly typed, tuned for one batch, with a timing cache that is kept.

Untested: no machine with TensorRT has run this file yet (see docs/results/README.md). Written against the
Python API of TensorRT 10.12 to 11.4, and tried against a double that knows its names.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tensorrt

from hwopt.errors import StageFailedError

_MAX_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A serialized engine, and what building it took."""

    plan: Any  # tensorrt.IHostMemory
    batch: int  # it is tuned for, and takes one to at least this many
    seconds: float
    timing_cache_bytes: int  # that were there before; 0 means that every kernel was timed anew

    @property
    def size(self) -> int:
        """Bytes of the engine."""
        return int(self.plan.nbytes)


def build(model: Path, batch: int, gpu: str) -> Built:
    """An engine of an ONNX file with explicit Q/DQ; precision comes from the file alone.

    Args:
        batch: to tune for.
        gpu: name and compute capability of the one that is here; the timing cache belongs to it.
    Raises:
        StageFailedError: TensorRT refuses the file, with its own reasons.
    """
    start = time.perf_counter()
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    flags = tensorrt.NetworkDefinitionCreationFlag
    # Deprecated and implied in TensorRT 11, needed in 10.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        reasons = [_reason(parser.get_error(index)) for index in range(parser.num_errors)]
        raise StageFailedError(f"TensorRT does not take {model.name}: {'; '.join(reasons)}", where=str(model))
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # the inspector needs it
    _optimize_for(builder, config, network, batch)
    kept = _cache_file(gpu)
    before = kept.read_bytes() if kept.is_file() else b""
    cache = config.create_timing_cache(before)
    # One of another GPU or version is refused, not believed; then a new one takes its place.
    if cache is None or not config.set_timing_cache(cache, False):
        before, cache = b"", config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    if hasattr(tensorrt.BuilderFlag, "TF32"):
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # float32 is float32; what is not, the file says
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StageFailedError(f"TensorRT could not build an engine for {model.name}", where=str(model))
    _keep(kept, bytes(cache.serialize()))
    return Built(plan=plan, batch=batch, seconds=time.perf_counter() - start, timing_cache_bytes=len(before))


def _optimize_for(builder: Any, config: Any, network: Any, batch: int) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(size < 0 for size in tuple(tensor.shape)[1:]):
            raise StageFailedError(
                f"the input {tensor.name!r} has the shape {list(tensor.shape)}: only the first axis may be free",
                fix="fix the other axes when exporting",
            )
        shapes = [
            tuple(size if given < 0 else given for given in tensor.shape)
            for size in (1, batch, max(_MAX_BATCH, batch))
        ]
        profile.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise StageFailedError("TensorRT refused the range of shapes of its inputs")


def _reason(error: Any) -> str:
    """``desc`` is often just "false"; the operator says more."""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    code = getattr(error.code(), "name", str(error.code()))
    said = error.desc().split("\n")[0]
    return " ".join(part for part in (code, operator, name, said if said != "false" else "") if part)


def _cache_file(gpu: str) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", gpu)
    return root / "hwopt" / f"tensorrt-{tensorrt.__version__}-{name}.timing"


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all; a cache that cannot be written costs time, not the result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError:
        return
