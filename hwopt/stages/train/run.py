"""Train a network from scratch, or from weights that the model brings."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.choices import Choice
from hwopt.core.stage import StageContext, StageResult
from hwopt.models.build import build_model
from hwopt.stages.train.spec import TrainConfig
from hwopt.training.batches import split
from hwopt.training.initialize import initialize
from hwopt.training.loop import fit
from hwopt.training.range_test import resolved


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: TrainConfig) -> StageResult:
    """Build the network from the seed, fit it, save it with its recipe."""
    torch.manual_seed(ctx.seed)
    dataset = ctx.data()
    recipe = checkpoints.Recipe(
        model=Choice.from_json(ctx.model), sample_shape=dataset.sample_shape, classes=dataset.classes
    )
    model = build_model(recipe.model, recipe.sample_shape, recipe.classes, ctx.import_root)
    if config.init != "default":
        initialize(model, config.init, ctx.seed)
    data = split(dataset, config.validation_share, ctx.seed)
    facts: dict[str, JSON] = {}
    settings, found = resolved(model, data, config, seed=ctx.seed, progress=ctx.progress)
    if found is not None:
        facts["lr_range_test"] = found.to_json()
    history = fit(
        model,
        data,
        settings,
        seed=ctx.seed,
        progress=ctx.progress,
        label="train",
        keep=ctx.keep,
        ledger=ctx.ledger,
    )
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "history.json"
    checkpoints.save(path, model, recipe)
    table.write_text(pretty_json({"epochs": list(history.epochs), "best_epoch": history.best_epoch}))
    return StageResult(
        files={"checkpoint": path, "history": table},
        facts={
            **facts,
            "history": list(history.epochs),
            "train_steps": history.steps,
            "training": history.cost,
            "training_events": history.events,
        },
    )
