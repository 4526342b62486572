"""Remove channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.hardware import Pruning
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import ConfigError
from hwopt.latency.bench import bench_of
from hwopt.latency.costs import exported
from hwopt.pruning.cut import cut, full_widths, strongest
from hwopt.pruning.growing import GrowingPenalty
from hwopt.pruning.importance import Scores
from hwopt.pruning.widths import Widths, nearest, ranked, uniform
from hwopt.slimming import Slimmer, own_widths, pruned_recipe
from hwopt.stages.prune.spec import PruneConfig
from hwopt.teachers import Lesson, teacher_of
from hwopt.training.batches import Split, split
from hwopt.training.evaluation import evaluate, refresh_batch_norm

_SCANNED = (0.25, 0.5, 0.75)


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: PruneConfig) -> StageResult:
    """Cut to the goal, at once or with training between, and save with the new shapes."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    data = split(ctx.data(), config.tune.validation_share, ctx.seed)
    slimmer = Slimmer(
        module=network.module,
        sample_shape=network.recipe.sample_shape,
        rules=ctx.hardware.pruning if ctx.hardware is not None else Pruning(),
        samples=data.x,
        labels=data.y,
        bench=None if config.latency is None else bench_of(ctx, config.timing),
        origin=_origin(ctx, inputs, network) if config.ratio is None else None,
        seed=ctx.seed,
        progress=ctx.progress,
    )
    slimmer.open_groups()
    facts: dict[str, Any] = {"frozen": dict(slimmer.structure.frozen)}
    if config.sensitivity and not len(data.x_validation):
        raise ConfigError("a sensitivity scan needs validation samples", fix="more than one training sample")
    if config.sensitivity:
        facts["prune_sensitivity"] = _scan(ctx, slimmer, config, data)
    lesson = None
    if config.trains:
        teacher = teacher_of(ctx, inputs, config.distill)
        lesson = Lesson(
            data=data,
            seed=ctx.seed,
            ctx=ctx,
            teacher=teacher,
            distill=config.distill,
            sparse=network.recipe.sparse,
        )
    first = full_widths(slimmer.structure)
    counters: dict[str, int] = {}
    seconds, steps = 0.0, 0
    parts = config.cuts
    for index in range(1, parts + 1):
        scores = slimmer.scores(config.importance)
        widths, goal = _widths(slimmer, scores, config, first, index / parts)
        if index == parts and config.ratio is not None and all(widths[n] == w for n, w in first.items()):
            raise ConfigError(
                "nothing would be cut: every width rounds back to itself "
                f"(multiples of {slimmer.rules.channel_multiple}, at least {slimmer.rules.least_channels})",
                fix="ask for more, or lower channel_multiple of the hardware profile",
            )
        if lesson is not None and config.schedule == "growing":
            keep = strongest(slimmer.structure, scores, widths)
            penalty = GrowingPenalty(slimmer.module, slimmer.structure, keep, config.strength)
            history = lesson.give(slimmer.module, config.tune, "prune, growing penalty", (penalty,))
            seconds, steps = seconds + history.cpu_seconds, steps + history.steps
            # What was pressed down goes, whatever its weights say now.
            scores = {g.layer: keep[g.units].astype(float) for g in slimmer.structure.groups}
        counters = slimmer.cut_to(widths, scores)
        now = full_widths(slimmer.structure)
        ctx.progress(f"prune: {sum(first.values())} → {sum(now[n] for n in first)} units")
        if lesson is not None and index < parts:
            history = lesson.give(slimmer.module, config.tune, f"prune, after cut {index} of {parts}")
            seconds, steps = seconds + history.cpu_seconds, steps + history.steps
    now = full_widths(slimmer.structure)
    cuts: list[JSON] = [{"layer": n, "before": w, "after": now[n]} for n, w in first.items()]
    if goal is not None:
        facts["pruning_goal"] = goal
        interval = goal["reached"]
        ctx.progress(
            f"prune: {goal['unit']} {interval['estimate']:.3f} of the float model ({goal['tier']}), "
            f"goal {goal['goal']:g}" + ("" if goal["met"] else ": not met, this is the nearest")
        )
    if steps:
        facts["training"] = {"cpu_seconds": seconds, "steps": steps}
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "cuts.json"
    checkpoints.save(path, slimmer.module, pruned_recipe(network.recipe, slimmer.module, counters))
    table.write_text(pretty_json(cuts))
    return StageResult(files={"checkpoint": path, "cuts": table}, facts={"cuts": cuts, **facts})


def _origin(ctx: StageContext, inputs: Mapping[str, Artifact], network: checkpoints.Network) -> Any:
    """The float model that shares are of: the one the candidate began with."""
    source = inputs.get("source", inputs["checkpoint"])
    module = network.module
    if source.digest != inputs["checkpoint"].digest:
        module = checkpoints.load(source.path, ctx.import_root, ctx.model).module
    return exported(module, network.recipe.sample_shape)


def _widths(
    slimmer: Slimmer, scores: Scores, config: PruneConfig, first: Widths, part: float
) -> tuple[Widths, dict[str, Any] | None]:
    """Widths of this cut; ``part`` of the way to the goal, on a logarithmic scale."""
    structure, rules = slimmer.structure, slimmer.rules
    fixed = own_widths(structure, config.layers, rules, first, part)
    if config.ratio is not None:
        if config.scope == "network":
            # Ranked among what is left, so that each of several cuts takes an equal share.
            ratio = 1 - (1 - config.ratio) ** (1 / config.cuts)
            return ranked(structure, scores, ratio, rules, fixed), None
        return uniform(structure, (1 - config.ratio) ** part, rules, first) | fixed, None
    goal = config.macs if config.macs is not None else config.latency
    assert goal is not None  # noqa: S101 - the settings have exactly one goal
    unit = "macs" if config.macs is not None else "latency"
    tier = Tier.MEASURED if config.needs_timing else Tier.ESTIMATED
    solution, reached = slimmer.towards(goal**part, unit, tier, scores, fixed)
    return solution.widths, reached.to_json()


def _scan(ctx: StageContext, slimmer: Slimmer, config: PruneConfig, data: Split) -> list[JSON]:
    """Validation accuracy with one group cut at a time; batch norms estimated anew, nothing trained."""
    scores = slimmer.scores(config.importance)
    _, whole = evaluate(slimmer.module, data.x_validation, data.y_validation)
    rows: list[JSON] = []
    for group in slimmer.structure.groups:
        for ratio in _SCANNED:
            width = nearest(group, group.width * (1 - ratio), slimmer.rules)
            if width == group.width:
                continue
            trial = copy.deepcopy(slimmer.module)
            widths = {**full_widths(slimmer.structure), group.layer: width}
            cut(trial, slimmer.structure, strongest(slimmer.structure, scores, widths))
            refresh_batch_norm(trial, data.x)
            with torch.no_grad():
                _, accuracy = evaluate(trial, data.x_validation, data.y_validation)
            rows.append(
                {
                    "layer": group.layer,
                    "cut": 1 - width / group.width,
                    "accuracy": accuracy,
                    "drop": whole - accuracy,
                }
            )
        ctx.progress(f"sensitivity: {group.layer}")
    return rows
