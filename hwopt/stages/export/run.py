"""Write ONNX and prove that it is the network."""

from __future__ import annotations

import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.fx import GraphModule

from hwopt import checkpoints
from hwopt.comparison import as_written
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.choices import NoOptions
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.layer_table import layer_table
from hwopt.live_memory import activation_bytes
from hwopt.model_check import check_model
from hwopt.numerics.scales import sqnr_db
from hwopt.quantization.fake_quant import FakeQuant
from hwopt.quantization.graph import to_graph
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.training.evaluation import logits_of

# Share of samples that the file as written must predict like the network. Rounding a float sum in another
# order moves an activation over a code's edge now and then, so quantized logits cannot be held bit for bit.
LEAST_AGREEMENT = 0.995
LEAST_DECIBELS = 20.0  # of the file as written against the network; values at code edges cost less
FLOAT_TOLERANCE = 1e-4  # of the greatest logit


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: NoOptions) -> StageResult:
    """ONNX file, the network's logits on the test split, parity of the two, parameters and MACs."""
    source = inputs["checkpoint"].path
    dataset = ctx.data()
    model = ctx.workdir / "model.onnx"
    if checkpoints.is_onnx(source):
        shutil.copyfile(source, model)
        check_model(model)
        # There is no torch network: the reference is the file as written, without a runtime's optimization.
        twin = as_written(model, dataset.x_test)
        parity, parameters = None, stored_parameters(model)
    else:
        parity, parameters, twin = _exported(ctx, source, model, dataset.x_test)
    predictions = ctx.workdir / "twin.npz"
    np.savez_compressed(predictions, logits=twin.astype(np.float32), labels=dataset.y_test)
    size = model.stat().st_size
    text = "" if parity is None else f", agreement of the file as written {parity['agreement']:.2%}"
    ctx.progress(f"export: {size:,} bytes{text}")
    packed: dict[str, JSON] = {}
    if not checkpoints.is_onnx(source) and checkpoints.read_recipe(source).sparse:
        packed = {"deflated_bytes": len(zlib.compress(model.read_bytes(), 9))}
    return StageResult(
        files={"model": model, "twin": predictions},
        facts={
            **packed,
            "file_bytes": size,
            "parameters": parameters,
            "macs": _macs(model),
            "activation_bytes": activation_bytes(onnx.load(model, load_external_data=False)),
            "parity": None if parity is None else dict[str, JSON](parity),
        },
    )


def _exported(
    ctx: StageContext, source: Path, model: Path, x_test: npt.NDArray[np.float32]
) -> tuple[dict[str, float], int, npt.NDArray[np.float32]]:
    network = checkpoints.load(source, ctx.import_root, ctx.model)
    network.recipe.fits(ctx.data().sample_shape, str(source))
    recipe, module = network.recipe, network.module
    module.train(False)
    quantized = network.table is not None
    # Both kinds with batch norm folded: the parameters that are shipped.
    folded = module if isinstance(module, GraphModule) else to_graph(module, recipe.sample_shape)
    parameters = sum(p.numel() for p in folded.parameters() if id(p) not in _grids(folded))
    graph = deployed(folded) if quantized else folded
    export_onnx(graph, recipe.sample_shape, model, {"hwopt.recipe": canonical_json(recipe.to_json())})
    twin = logits_of(module, torch.from_numpy(x_test)).numpy()
    return check_parity(model, twin, x_test, quantized=quantized), parameters, twin


def _macs(model: Path) -> int | None:
    """None where a shape stays unknown, as in models of others with free axes."""
    try:
        return sum(layer.macs for layer in layer_table(model))
    except StageFailedError:
        return None


def stored_parameters(model: Path) -> int:
    """Numbers that the file stores, but for scales and zero points."""
    graph = onnx.load(model).graph
    pairs = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    grids = {name for node in pairs for name in node.input[1:]}
    return sum(math.prod(i.dims) for i in graph.initializer if i.name not in grids and len(i.dims))


def _grids(module: nn.Module) -> set[int]:
    """Identities of the learned quantization scales, which are no weights of the network."""
    return {id(p) for grid in module.modules() if isinstance(grid, FakeQuant) for p in grid.parameters()}


def check_parity(
    model: Path, twin: npt.NDArray[np.float32], x: npt.NDArray[np.float32], *, quantized: bool
) -> dict[str, float]:
    """Compare the file as written, unoptimized, with the torch network.

    Raises:
        StageFailedError: a float model differs by more than rounding, or a quantized one disagrees on more
            than 0.5 % of the samples.
    """
    logits = as_written(model, x)
    difference = float(np.abs(logits - twin).max())
    largest = float(np.abs(twin).max())
    agreement = float(np.mean(logits.argmax(1) == twin.argmax(1)))
    if not quantized and difference > FLOAT_TOLERANCE * max(1.0, largest):
        raise StageFailedError(
            f"the exported model differs from the network by {difference:.2g} on logits up to {largest:.2g}",
            fix="the exporter mistranslated an operator; report it with the model",
        )
    decibels = sqnr_db(twin, logits)
    if quantized and decibels < LEAST_DECIBELS:
        raise StageFailedError(
            f"the exported model lies {decibels:.1f} dB from the network, more than rounding explains",
            fix="the exporter mistranslated an operator; report it with the model",
        )
    # One sample may always differ: in a small test split a single near-tie would otherwise fail the export.
    if quantized and round((1 - agreement) * len(x)) > max(1, (1 - LEAST_AGREEMENT) * len(x)):
        raise StageFailedError(
            f"the exported model and the network agree on {agreement:.2%} of the test samples only",
            fix="the exporter mistranslated an operator; report it with the model",
        )
    return {"max_difference": difference, "largest_logit": largest, "agreement": agreement}
