"""The network as it is before training."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.choices import Choice
from hwopt.core.stage import StageContext, StageResult
from hwopt.models.build import build_model
from hwopt.stages.untrained.spec import UntrainedConfig


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: UntrainedConfig) -> StageResult:
    """Build the network from the seed, save it with its recipe."""
    torch.manual_seed(ctx.seed + config.restart)
    dataset = ctx.data()
    recipe = checkpoints.Recipe(
        model=Choice.from_json(ctx.model), sample_shape=dataset.sample_shape, classes=dataset.classes
    )
    path = ctx.workdir / "model.safetensors"
    checkpoints.save(
        path, build_model(recipe.model, recipe.sample_shape, recipe.classes, ctx.import_root), recipe
    )
    return StageResult(files={"checkpoint": path})
