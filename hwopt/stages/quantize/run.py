"""Quantize a network: the methods of ``hwopt.quantization``, and for QAT the training loop from there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hwopt import checkpoints
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.latency.bench import bench_of
from hwopt.latency.precision import module_precision
from hwopt.pruning.masks import KeepZeros
from hwopt.quantization.insert import fake_quantizers
from hwopt.quantization.live_norms import LiveNorms
from hwopt.quantization.oscillation import Freezing, handle
from hwopt.quantization.ptq import Quantized, quantize_module
from hwopt.stages.quantize.onnx_source import quantize_source
from hwopt.stages.quantize.spec import QuantizeConfig, effective_scheme
from hwopt.teachers import teacher_of
from hwopt.training.batches import Split, split
from hwopt.training.evaluation import logits_of
from hwopt.training.loop import fit
from hwopt.training.step import Hook, Teacher


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: QuantizeConfig) -> StageResult:
    """Float checkpoint to fake-quantized checkpoint, with the table of decisions."""
    if ctx.hardware is None:
        raise StageFailedError("quantize needs a device")
    source = inputs["checkpoint"]
    if source.kind is Kind.ONNX:
        return quantize_source(ctx, source.path, config, ctx.hardware)
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    network.recipe.fits(ctx.data().sample_shape, str(inputs["checkpoint"].path))
    scheme = effective_scheme(config, ctx.hardware)
    data = split(ctx.data(), config.validation_share, ctx.seed)
    chosen = np.random.default_rng([ctx.seed, 2]).permutation(len(data.x))[: config.calibration_samples]
    samples = data.x[torch.from_numpy(chosen)]
    settings, timed = config.ptq_settings(), {}
    if config.where_faster:
        found, rules = module_precision(
            network.module,
            network.recipe.sample_shape,
            scheme,
            [{"input": part.numpy()} for part in samples[:64].split(16)],
            bench_of(ctx, config.timing),
            settings.rules,
        )
        settings = settings.model_copy(update={"rules": (*settings.rules, *rules)})
        timed = {"where_faster": found.to_json()}
        worth = f"{sum(found.integer)} of {len(found.integer)} layers are worth it"
        ctx.progress(f"quantize: {worth}, {found.ratio:.3f} of the time in float")
    made = quantize_module(
        network.module,
        network.recipe.sample_shape,
        scheme,
        samples,
        settings,
        seed=ctx.seed,
        progress=ctx.progress,
    )
    used = f", {len(chosen)} samples" if config.method in {"ptq", "qat"} else ""
    made.facts |= timed
    ctx.progress(f"quantize: {len(made.table.decisions)} decisions{used}")
    if config.method == "qat":
        teacher = None
        if config.distill is not None:
            module = teacher_of(ctx, {"source": source, **inputs}, config.distill)
            if module is not None:
                teacher = Teacher(logits=logits_of(module, data.x), settings=config.distill)
        made.facts |= _train(ctx, config, made, data, samples, teacher, sparse=network.recipe.sparse)
    path, decisions = ctx.workdir / "model.safetensors", ctx.workdir / "decisions.json"
    recipe = checkpoints.quantized_recipe(
        network.recipe,
        network.module,
        scheme,
        ctx.hardware.name,
        made.settings.rules,
        made.reference.meta.get("scaled", []),
    )
    checkpoints.save(path, made.graph, recipe)
    decisions.write_text(pretty_json([decision.to_json() for decision in made.table.decisions]))
    return StageResult(files={"checkpoint": path, "decisions": decisions}, facts=made.facts)


def _train(
    ctx: StageContext,
    config: QuantizeConfig,
    made: Quantized,
    data: Split,
    samples: Tensor,
    teacher: Teacher | None,
    *,
    sparse: bool,
) -> dict[str, JSON]:
    facts: dict[str, JSON] = {}
    hooks: list[Hook] = [KeepZeros(made.graph)] if sparse else []
    norms = None
    if config.batch_norm_epochs:
        normed = made.reference.meta.get("normed", [])
        norms = LiveNorms(made.graph, normed, samples, config.batch_norm_epochs)
        facts["live_norms"] = norms.count
        hooks.append(norms)
    if config.learn_zero_points:
        for _, grid in fake_quantizers(made.graph):
            grid.learn_zero_point()
    oscillations = None
    if config.oscillations is not None:
        oscillations = handle(made.graph, config.oscillations)
        hooks.append(oscillations)
    history = fit(
        made.graph,
        data,
        config.fit_settings(),
        seed=ctx.seed,
        progress=ctx.progress,
        label="qat",
        teacher=teacher,
        hooks=hooks,
        keep=ctx.keep,
        ledger=ctx.ledger,
    )
    if norms is not None:
        norms.fold()  # where they outlived the training
    if isinstance(oscillations, Freezing):
        facts["frozen_weights"] = oscillations.frozen_share
    facts |= {"qat_history": list(history.epochs), "training": history.cost}
    return facts
