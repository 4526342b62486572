"""Write ONNX and prove that it is the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn
from torch.fx import GraphModule

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.choices import NoOptions
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.layer_table import layer_table
from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.training.loop import logits_of

# Share of samples that the file as written must predict like the network. Rounding a float sum in another
# order moves an activation over a code's edge now and then, so quantized logits cannot be held bit for bit.
LEAST_AGREEMENT = 0.995
FLOAT_TOLERANCE = 1e-4  # of the greatest logit


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: NoOptions) -> StageResult:
    """ONNX file, the torch network's logits on the test split, parity of the two, parameters and MACs."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    recipe, module = network.recipe, network.module
    module.train(False)
    quantized = network.table is not None
    # Both kinds with batch norm folded: the parameters that are shipped.
    folded = module if isinstance(module, GraphModule) else to_graph(module, recipe.sample_shape)
    parameters = sum(p.numel() for p in folded.parameters() if id(p) not in _scales(folded))
    graph = deployed(folded) if quantized else folded
    metadata = {"hwopt.recipe": canonical_json(recipe.to_json())}
    model = ctx.workdir / "model.onnx"
    export_onnx(graph, recipe.sample_shape, model, metadata)
    dataset = ctx.data()
    twin = logits_of(module, torch.from_numpy(dataset.x_test)).numpy()
    parity = check_parity(model, twin, dataset.x_test, quantized=quantized)
    predictions = ctx.workdir / "twin.npz"
    np.savez_compressed(predictions, logits=twin.astype(np.float32), labels=dataset.y_test)
    layers = layer_table(model)
    size = model.stat().st_size
    ctx.progress(f"export: {size:,} bytes, agreement of the file as written {parity['agreement']:.2%}")
    return StageResult(
        files={"model": model, "twin": predictions},
        facts={
            "file_bytes": size,
            "parameters": parameters,
            "macs": sum(layer.macs for layer in layers),
            "parity": dict[str, JSON](parity),
        },
    )


def _scales(module: nn.Module) -> set[int]:
    """Identities of the learned quantization scales, which are no weights of the network."""
    return {id(grid.log2_scale) for grid in module.modules() if isinstance(grid, FakeQuant)}


def check_parity(
    model: Path, twin: npt.NDArray[np.float32], x: npt.NDArray[np.float32], *, quantized: bool
) -> dict[str, float]:
    """Compare the file as written, unoptimized, with the torch network.

    Raises:
        StageFailedError: a float model differs by more than rounding, or a quantized one disagrees on more
            than 0.5 % of the samples.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    chunks = np.array_split(x, max(1, len(x) // 256))
    logits = np.concatenate([session.run(None, {"input": chunk})[0] for chunk in chunks])
    if not np.isfinite(logits).all():
        raise StageFailedError("the exported model gives NaN or infinity on the test split")
    difference = float(np.abs(logits - twin).max())
    largest = float(np.abs(twin).max())
    agreement = float(np.mean(logits.argmax(1) == twin.argmax(1)))
    if not quantized and difference > FLOAT_TOLERANCE * max(1.0, largest):
        raise StageFailedError(
            f"the exported model differs from the network by {difference:.2g} on logits up to {largest:.2g}",
            fix="the exporter mistranslated an operator; report it with the model",
        )
    # One sample may always differ: in a small test split a single near-tie would otherwise fail the export.
    if quantized and round((1 - agreement) * len(x)) > max(1, (1 - LEAST_AGREEMENT) * len(x)):
        raise StageFailedError(
            f"the exported model and the network agree on {agreement:.2%} of the test samples only",
            fix="the exporter mistranslated an operator; report it with the model",
        )
    return {"max_difference": difference, "largest_logit": largest, "agreement": agreement}
