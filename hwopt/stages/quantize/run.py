"""Quantize a network: insert, calibrate, and for QAT train on. One path for both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.quantization.insert import calibrate
from hwopt.stages.quantize.spec import QuantizeConfig, effective_scheme
from hwopt.training.loop import Teacher, fit, logits_of, split

_CALIBRATION_BATCH = 64


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: QuantizeConfig) -> StageResult:
    """Float checkpoint to fake-quantized checkpoint, with the table of decisions."""
    if ctx.hardware is None:
        raise StageFailedError("quantize needs a device")
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    scheme = effective_scheme(config, ctx.hardware)
    twin, table = checkpoints.quantized_twin(network.module, network.recipe.sample_shape, scheme)
    data = split(ctx.data(), config.validation_share, ctx.seed)
    chosen = np.random.default_rng([ctx.seed, 2]).permutation(len(data.x))[: config.calibration_samples]
    calibrate(twin, torch.split(data.x[torch.from_numpy(chosen)], _CALIBRATION_BATCH))
    ctx.progress(f"quantize: calibrated {len(table.decisions)} tensors on {len(chosen)} samples")
    facts: dict[str, JSON] = {}
    if config.method == "qat":
        teacher = None
        if config.distill is not None:
            teacher = Teacher(logits=logits_of(network.module, data.x), settings=config.distill)
        history = fit(
            twin,
            data,
            config.fit_settings(),
            seed=ctx.seed,
            progress=ctx.progress,
            label="qat",
            teacher=teacher,
        )
        facts["qat_history"] = list(history.epochs)
    path, decisions = ctx.workdir / "model.safetensors", ctx.workdir / "decisions.json"
    recipe = checkpoints.quantized_recipe(network.recipe, network.module, scheme, ctx.hardware.name)
    checkpoints.save(path, twin, recipe)
    decisions.write_text(pretty_json([decision.to_json() for decision in table.decisions]))
    return StageResult(files={"checkpoint": path, "decisions": decisions}, facts=facts)
