"""Several trainings of one network: the best of them, or all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.models.ensemble import Ensemble
from hwopt.stages.ensemble.spec import EnsembleConfig
from hwopt.training.batches import split
from hwopt.training.evaluation import evaluate


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: EnsembleConfig) -> StageResult:
    """Compare the members on validation samples, and keep one or all."""
    ports = ["checkpoint", *(f"member{i}" for i in range(1, config.members))]
    absent = [port for port in ports if port not in inputs]
    if absent:
        raise StageFailedError(f"{len(absent)} members were not trained", fix="use ensemble in a profile")
    members = [checkpoints.load(inputs[port].path, ctx.import_root, ctx.model) for port in ports]
    data = split(ctx.data(), config.validation_share, ctx.seed)
    if not len(data.x_validation):
        raise StageFailedError("members are compared on validation samples", fix="raise validation_share")
    accuracies = [evaluate(m.module, data.x_validation, data.y_validation)[1] for m in members]
    place = max(range(len(members)), key=lambda i: (accuracies[i], -i))
    together = Ensemble([member.module for member in members])
    average = evaluate(together, data.x_validation, data.y_validation)[1]
    ctx.progress(
        f"ensemble: members {min(accuracies):.2%} to {max(accuracies):.2%} on validation, their average {average:.2%}"
    )
    path = ctx.workdir / "model.safetensors"
    if config.take == "best":
        checkpoints.save(path, members[place].module, members[place].recipe)
    else:
        checkpoints.save(path, together, replace(members[0].recipe, members=len(members)))
    return StageResult(
        files={"checkpoint": path},
        facts={
            "ensemble": {
                "take": config.take,
                "members": list[JSON](accuracies),
                "chosen": place if config.take == "best" else None,
                "average": average,
                "average_is_better": average > max(accuracies),
            }
        },
    )
