"""Set weights to zero while training goes on; shapes stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.stage import StageContext, StageResult
from hwopt.pruning.masks import Gradual, KeepZeros, apply, pattern_masks, weights_of, zero_share
from hwopt.stages.sparsify.spec import SparsifyConfig
from hwopt.teachers import Lesson, teacher_of
from hwopt.training.batches import split
from hwopt.training.step import Hook


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: SparsifyConfig) -> StageResult:
    """Train under masks, and save a network whose zeros further training keeps."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    network.recipe.fits(ctx.data().sample_shape, str(inputs["checkpoint"].path))
    module = network.module
    data = split(ctx.data(), config.validation_share, ctx.seed)
    teacher = teacher_of(ctx, inputs, config.distill)
    lesson = Lesson(data=data, seed=ctx.seed, ctx=ctx, teacher=teacher, distill=config.distill)
    facts: dict[str, Any] = {}
    hook: Hook
    if config.sparsity is not None:
        gradual = Gradual(module, config.sparsity, network=config.scope == "network", ramp=config.ramp)
        history = lesson.give(module, config, "sparsify", (gradual,))
        gradual.settle()  # early stopping may have restored weights from before the last mask
    else:
        masks, skipped = pattern_masks(module, *config.counts)
        apply(module, masks)
        hook = KeepZeros(module)
        history = lesson.give(module, config, "sparsify", (hook,))
        facts["without_pattern"] = skipped
    share = zero_share(module)
    facts |= {
        "sparsify_history": list(history.epochs),
        "training": history.cost,
        "zero_weights": {
            "share": share,
            "pattern": config.pattern,
            "layers": {name: float((w == 0).float().mean()) for name, w in weights_of(module)},
        },
    }
    ctx.progress(f"sparsify: {share:.1%} of the weights are zero")
    path = ctx.workdir / "model.safetensors"
    checkpoints.save(path, module, replace(network.recipe, sparse=True))
    return StageResult(files={"checkpoint": path}, facts=facts)
