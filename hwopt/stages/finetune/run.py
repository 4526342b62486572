"""Train a network further."""

from __future__ import annotations

from collections.abc import Mapping

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.stage import StageContext, StageResult
from hwopt.stages.finetune.spec import FinetuneConfig
from hwopt.teachers import Lesson, teacher_of
from hwopt.training.batches import split


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: FinetuneConfig) -> StageResult:
    """Load, fit, save with the same recipe."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    network.recipe.fits(ctx.data().sample_shape, str(inputs["checkpoint"].path))
    data = split(ctx.data(), config.validation_share, ctx.seed)
    teacher = teacher_of(ctx, inputs, config.distill)
    sparse = network.recipe.sparse
    lesson = Lesson(
        data=data,
        seed=ctx.seed,
        ctx=ctx,
        teacher=teacher,
        distill=config.distill,
        sparse=sparse,
        resumes=True,
    )
    history = lesson.give(network.module, config, "finetune")
    path = ctx.workdir / "model.safetensors"
    checkpoints.save(path, network.module, network.recipe)
    return StageResult(
        files={"checkpoint": path},
        facts={"finetune_history": list(history.epochs), "training": history.cost},
    )
