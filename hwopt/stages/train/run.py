"""Train a network from scratch, or from weights that the model brings."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.choices import Choice
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import ConfigError
from hwopt.models.build import build_model
from hwopt.stages.train.spec import TrainConfig
from hwopt.training.batches import split
from hwopt.training.initialize import initialize
from hwopt.training.loop import fit
from hwopt.training.range_test import resolved

_APART = 100_003  # seeds of restarts: far from those of repeated trainings


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: TrainConfig) -> StageResult:
    """Build the network from the seed, fit it, save it with its recipe."""
    seed = ctx.seed + _APART * config.restart
    torch.manual_seed(seed)
    dataset = ctx.data()
    recipe = checkpoints.Recipe(
        model=Choice.from_json(ctx.model), sample_shape=dataset.sample_shape, classes=dataset.classes
    )
    model = build_model(recipe.model, recipe.sample_shape, recipe.classes, ctx.import_root)
    if config.init != "default":
        initialize(model, config.init, seed)
    if dataset.vectors is not None:
        _fill_embedding(model, dataset.vectors)
    data = split(dataset, config.validation_share, ctx.seed)
    facts: dict[str, JSON] = {}
    settings, found = resolved(model, data, config, seed=seed, progress=ctx.progress)
    if found is not None:
        facts["lr_range_test"] = found.to_json()
    history = fit(
        model,
        data,
        settings,
        seed=seed,
        progress=ctx.progress,
        label="train",
        keep=ctx.keep,
        ledger=ctx.ledger,
    )
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "history.json"
    checkpoints.save(path, model, recipe)
    table.write_text(pretty_json({"epochs": list(history.epochs), "best_epoch": history.best_epoch}))
    words = ctx.workdir / "vocabulary.txt"
    words.write_text("\n".join(dataset.vocabulary), encoding="utf-8")
    return StageResult(
        files={"checkpoint": path, "history": table, "vocabulary": words},
        facts={
            **facts,
            "data": dict(dataset.facts),
            "history": list(history.epochs),
            "train_steps": history.steps,
            "training": history.cost,
            "training_events": history.events,
        },
    )


def _fill_embedding(model: nn.Module, vectors: npt.NDArray[np.float32]) -> None:
    """Start the table of words with given vectors; words without one keep their random rows.

    Raises:
        ConfigError: the model has no table of that size.
    """
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == len(vectors)]
    if not tables or tables[0].embedding_dim != vectors.shape[1]:
        has = f"a table with {tables[0].embedding_dim}" if tables else "no table of words"
        raise ConfigError(
            f"the word vectors have {vectors.shape[1]} numbers, and the model has {has}",
            fix=f"set the model's embedding (or width) to {vectors.shape[1]}",
        )
    known = torch.from_numpy(np.abs(vectors).sum(1) > 0)
    with torch.no_grad():
        tables[0].weight[known] = torch.from_numpy(vectors)[known]
