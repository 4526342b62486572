"""Train a network from scratch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import pretty_json
from hwopt.core.choices import Choice
from hwopt.core.stage import StageContext, StageResult
from hwopt.models.build import build_model
from hwopt.stages.train.spec import TrainConfig
from hwopt.training.loop import fit, split


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: TrainConfig) -> StageResult:
    """Build the network from the seed, fit it, save it with its recipe."""
    torch.manual_seed(ctx.seed)
    dataset = ctx.data()
    recipe = checkpoints.Recipe(
        model=Choice.from_json(ctx.model), sample_shape=dataset.sample_shape, classes=dataset.classes
    )
    model = build_model(recipe.model, recipe.sample_shape, recipe.classes, ctx.import_root)
    data = split(dataset, config.validation_share, ctx.seed)
    history = fit(model, data, config, seed=ctx.seed, progress=ctx.progress, label="train")
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "history.json"
    checkpoints.save(path, model, recipe)
    table.write_text(pretty_json({"epochs": list(history.epochs), "best_epoch": history.best_epoch}))
    return StageResult(
        files={"checkpoint": path, "history": table},
        facts={"history": list(history.epochs), "train_steps": history.steps, "training": history.cost},
    )
