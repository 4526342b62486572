"""Hand a model over to hls4ml and run its C simulation, in a process of its own: generated C++ may crash."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from hwopt.errors import EngineMissingError, StageFailedError
from hwopt.fpga.qonnx import to_qonnx

# Wide enough for the sums of small networks; the types of quantized tensors come from the model.
_ACCUMULATORS: Final = "fixed<48,20>"
_SECONDS: Final = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What the C simulation gave."""

    outputs: npt.NDArray[np.float64]
    folder: Path  # with the C++ sources
    version: str
    types: dict[str, str]  # of every layer's result


def missing() -> EngineMissingError | None:
    """What is not installed here."""
    for package in ("hls4ml", "qonnx"):
        if importlib.util.find_spec(package) is None:
            return EngineMissingError(f"{package} is not installed", fix="pip install 'hwopt[fpga]'")
    if shutil.which("g++") is None:
        return EngineMissingError("hls4ml's C simulation needs g++", fix="install it (apt install g++)")
    return None


def csim(path: Path, x: npt.NDArray[np.float32], folder: Path, io: str = "io_parallel") -> Simulated:
    """Convert, compile and run.

    Args:
        x: inputs of the model, shape (samples, ...), channels first.
        folder: where the C++ project goes.
        io: io_parallel, or io_stream for convolutions.
    Raises:
        EngineMissingError: hls4ml, qonnx or g++ is not installed.
        StageFailedError: hls4ml refuses the model, or its program crashes.
    """
    lacking = missing()
    if lacking is not None:
        raise lacking
    folder.mkdir(parents=True, exist_ok=True)
    model = to_qonnx(path, one_scale=True)
    for value in (*model.graph.input, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        batch.Clear()
        batch.dim_value = 1
    onnx.save(model, folder / "model.qonnx.onnx")
    np.save(folder / "inputs.npy", x, allow_pickle=False)
    (folder / "task.json").write_text(json.dumps({"io": io, "accumulators": _ACCUMULATORS}))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hwopt.fpga.hls_worker", str(folder.resolve())],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StageFailedError(f"hls4ml took longer than {_SECONDS:g} s") from None
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        why = f"signal {-done.returncode}" if done.returncode < 0 else (said[-1] if said else "no word")
        raise StageFailedError(
            f"hls4ml's C simulation failed: {why}",
            fix="hls4ml takes linear layers, and convolutions with --io io_stream; global pooling crashes in 1.3",
        )
    told: dict[str, Any] = json.loads((folder / "result.json").read_text())
    outputs = np.load(folder / "outputs.npy", allow_pickle=False).astype(np.float64)
    return Simulated(
        outputs=outputs.reshape(len(x), -1), folder=folder, version=told["version"], types=told["types"]
    )
