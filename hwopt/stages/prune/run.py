"""Remove channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import pretty_json
from hwopt.core.hardware import Pruning
from hwopt.core.stage import StageContext, StageResult
from hwopt.pruning.channels import prune_channels
from hwopt.stages.prune.spec import PruneConfig
from hwopt.training.loop import refresh_batch_norm


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: PruneConfig) -> StageResult:
    """Cut, estimate batch-norm statistics anew, save with the new shapes."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    rules = ctx.hardware.pruning if ctx.hardware is not None else Pruning()
    cuts = prune_channels(
        network.module,
        network.recipe.sample_shape,
        ratio=config.ratio,
        multiple=rules.channel_multiple,
        least=rules.least_channels,
    )
    refresh_batch_norm(network.module, torch.from_numpy(ctx.data().x_train))
    before, after = sum(cut.before for cut in cuts), sum(cut.after for cut in cuts)
    ctx.progress(f"prune: {len(cuts)} groups, {before} → {after} channels")
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "cuts.json"
    recipe = replace(network.recipe, shapes=checkpoints.shapes_of(network.module))
    checkpoints.save(path, network.module, recipe)
    table.write_text(pretty_json([cut.to_json() for cut in cuts]))
    return StageResult(
        files={"checkpoint": path, "cuts": table}, facts={"cuts": [cut.to_json() for cut in cuts]}
    )
