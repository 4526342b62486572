"""Check the file, tidy it, write it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwopt.core.artifact import Artifact
from hwopt.core.stage import StageContext, StageResult
from hwopt.model_check import check_model
from hwopt.quantization.onnx_export import write
from hwopt.quantization.onnx_net import read
from hwopt.stages.read.spec import ReadConfig


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: ReadConfig) -> StageResult:
    """The file as a tidied ONNX model."""
    source = Path(config.onnx)
    check_model(source)
    model = read(source, config.fix)
    path = ctx.workdir / "model.onnx"
    write(model, path, {})
    ctx.progress(f"read: {source.name}, {len(model.graph.node)} operators after folding constants")
    return StageResult(files={"checkpoint": path})
