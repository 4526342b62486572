"""The stage on an ONNX model: no torch, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from hwopt.core.canonical import pretty_json
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import ConfigError
from hwopt.quantization.onnx_export import write
from hwopt.quantization.onnx_net import Batch
from hwopt.quantization.onnx_ptq import quantize_onnx
from hwopt.stages.quantize.spec import QuantizeConfig, effective_scheme

_BATCH = 16


def quantize_source(
    ctx: StageContext, model_path: Path, config: QuantizeConfig, hardware: HardwareProfile
) -> StageResult:
    """A float ONNX model to a quantized one, calibrated on the training split."""
    model = onnx.load(model_path)
    inputs = list(model.graph.input)
    if len(inputs) != 1:
        raise ConfigError(
            f"the model has {len(inputs)} inputs: {', '.join(i.name for i in inputs)}",
            fix="a pipeline's data feeds one; use `hwopt quantize MODEL.onnx --calibration FILE.npz`",
        )
    x = ctx.data().x_train
    order = np.random.default_rng([ctx.seed, 2]).permutation(len(x))[: config.calibration_samples]
    made = quantize_onnx(
        model,
        effective_scheme(config, hardware),
        cut(inputs[0], x[np.sort(order)]),
        config.ptq_settings(),
        progress=ctx.progress,
    )
    used = f", {len(order)} samples" if config.method == "ptq" else ""
    ctx.progress(f"quantize: {len(made.table.decisions)} decisions{used}")
    path, decisions = ctx.workdir / "model.onnx", ctx.workdir / "decisions.json"
    write(made.model, path, {})
    decisions.write_text(pretty_json([decision.to_json() for decision in made.table.decisions]))
    return StageResult(files={"checkpoint": path, "decisions": decisions}, facts=made.facts)


def cut(value: onnx.ValueInfoProto, x: Array) -> list[Batch]:
    """Samples in batches of the model's own size, or of 16 where it is free; an unfilled last one goes."""
    dims = value.type.tensor_type.shape.dim
    fixed = dims[0].dim_value if len(dims) else 0
    size = fixed or _BATCH
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    chunks = [x[i : i + size] for i in range(0, len(x), size)]
    return [{value.name: c.astype(dtype)} for c in chunks if not fixed or len(c) == fixed]
