"""Train the super-net, look at some of its networks, find the best within the goal, cut it out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Final

import numpy as np
import onnx
from torch import nn

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.hardware import Pruning
from hwopt.core.measurement import Interval, Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.latency.bench import Bench, bench_of
from hwopt.latency.costs import Build, builder, exported
from hwopt.layer_table import layers_of
from hwopt.models.build import leave_out
from hwopt.pruning.cut import attributes_at, grouped
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import PtqSettings
from hwopt.slimming import Reached, Slimmer, pruned_recipe
from hwopt.stages.elastic.evolve import Predictor, evolve
from hwopt.stages.elastic.latency_table import LOOKS, LatencyTable, agreement
from hwopt.stages.elastic.spec import ElasticConfig
from hwopt.stages.elastic.supernet import Sandwich, Shape, SuperNet, blocks_of
from hwopt.teachers import Lesson
from hwopt.training.batches import Split, split
from hwopt.training.evaluation import evaluate

_MEASURED: Final = 10  # networks that the table is held against
_FITTED: Final = 24  # other networks, that it is corrected by
_TOGETHER: Final = 12
_LEAST: Final = 6  # networks besides the whole one, to correct a table and to judge it
_CONFIRMED: Final = 5  # winners that are timed before the search is given up


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: ElasticConfig) -> StageResult:
    """The checkpoint of the winner, and a table of all networks that were looked at."""
    network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
    if network.recipe.dropped:
        raise StageFailedError("blocks were left out before", fix="use one elastic step in a chain")
    data = split(ctx.data(), config.train.validation_share, ctx.seed)
    _converged(network.module, data, config)
    slimmer = Slimmer(
        module=network.module,
        sample_shape=network.recipe.sample_shape,
        rules=ctx.hardware.pruning if ctx.hardware is not None else Pruning(),
        samples=data.x,
        labels=data.y,
        seed=ctx.seed,
        progress=ctx.progress,
    )
    slimmer.open_groups()
    blocks = (
        blocks_of(
            network.module, network.recipe.sample_shape, slimmer.structure, data.x[:1024], data.y[:1024]
        )
        if config.depth
        else []
    )
    net = SuperNet(
        network.module, slimmer.structure, slimmer.scores("l1"), config.widths, slimmer.rules, blocks
    )
    if net.count < 2:
        raise StageFailedError(
            "there is one network only: every width rounds back to itself", fix="add narrower widths"
        )
    cost = _Cost(ctx, config, net, network.recipe.sample_shape, _origin(ctx, inputs, network))
    trust = cost.held_against_measurement()
    fits = cost([net.least])[0]
    goal = config.latency if config.latency is not None else config.macs
    if goal is None or fits > goal:
        raise StageFailedError(
            f"the least network still takes {fits:.3f} of the float model's {cost.unit}, and {goal} is asked for",
            fix="add narrower widths, or loosen the goal",
        )
    ctx.progress(
        f"elastic: {net.count} networks of {len(net.sizes)} groups, {len(blocks)} blocks may be left out"
    )
    sandwich = Sandwich(net, config.per_step, ctx.seed)
    try:
        lesson = Lesson(data=data, seed=ctx.seed, ctx=ctx, sparse=network.recipe.sparse, resumes=True)
        history = lesson.give(network.module, config.train, "elastic", (sandwich,))
    finally:
        sandwich.close()
    began = time.process_time()
    look = _Looks(ctx, config, net, data, network.recipe.sample_shape)
    rng = np.random.default_rng([ctx.seed, 13])
    shapes = look.some(rng, min(config.scored, net.count))
    predict = Predictor.fit(net, shapes, [look(s) for s in shapes])
    promising = evolve(
        net, predict, cost, goal, population=config.population, generations=config.generations, seed=ctx.seed
    )
    finalists = [shape for shape, _ in promising[: config.finalists]]
    seen = [s for s in dict.fromkeys([*finalists, *shapes]) if cost([s])[0] <= goal]
    if not seen:
        raise StageFailedError("no network was found within the goal", fix="loosen it, or raise generations")
    ranked = sorted(seen, key=lambda s: (-look(s), cost([s])[0]))
    best, reached = cost.confirmed(ranked, goal)
    ctx.progress(
        f"elastic: {look(best):.2%} on validation at {cost([best])[0]:.3f} of the {cost.unit}, "
        f"{len(look.found)} networks looked at"
    )
    winner = net.alone(best, data.x)
    counters = attributes_at(net.structure_at(best), net.keep(best)) | grouped(winner)
    recipe = replace(pruned_recipe(network.recipe, winner, counters), dropped=net.gone(best))
    path, table = ctx.workdir / "model.safetensors", ctx.workdir / "networks.json"
    checkpoints.save(path, winner, recipe)
    rows: list[JSON] = [
        _row(net, s, a, cost([s])[0]) for s, a in sorted(look.found.items(), key=lambda item: -item[1])
    ]
    table.write_text(pretty_json(rows))
    return StageResult(
        files={"checkpoint": path, "networks": table},
        facts={
            "training": {**history.cost, "cpu_seconds": history.cpu_seconds + time.process_time() - began},
            "pruning_goal": {**reached.to_json(), "stage": "elastic"},
            "elastic": {
                "networks": net.count,
                "groups": {name: list[JSON](choices) for name, choices in net.choices.items()},
                "blocks": list[JSON](net.blocks),
                "unit": cost.unit,
                "tier": cost.tier.value,
                "goal": goal,
                "table": trust,
                "looked_at": len(look.found),
                "quantized": config.quantized,
                "whole": look(net.whole),
                "winner": _row(net, best, look(best), cost([best])[0]),
                "front": _front(net, look.found, cost),
            },
        },
    )


def _converged(module: nn.Module, data: Split, config: ElasticConfig) -> None:
    """A super-net is as good as the network that it begins with."""
    if not len(data.x_validation):
        raise StageFailedError(
            "networks are compared on validation samples", fix="set train.validation_share above 0"
        )
    _, accuracy = evaluate(module, data.x_validation, data.y_validation)
    if accuracy < config.converged:
        raise StageFailedError(
            f"the network has not converged: {accuracy:.1%} on validation, and {config.converged:.0%} is the least "
            "a super-net begins with",
            fix="train it longer; or lower elastic.converged, if that is good for this data",
        )


def _origin(
    ctx: StageContext, inputs: Mapping[str, Artifact], network: checkpoints.Network
) -> onnx.ModelProto | None:
    """The float model that shares are of; None where it is the network itself."""
    source = inputs.get("source")
    if source is None or source.digest == inputs["checkpoint"].digest:
        return None
    module = checkpoints.load(source.path, ctx.import_root, ctx.model).module
    return exported(module, network.recipe.sample_shape)


class _Cost:
    """What shapes take, as shares of the whole network: by the latency table, or counted."""

    def __init__(
        self,
        ctx: StageContext,
        config: ElasticConfig,
        net: SuperNet,
        sample_shape: tuple[int, ...],
        origin: onnx.ModelProto | None,
    ) -> None:
        self.unit = "macs" if config.latency is None else "latency"
        self.tier = Tier.ESTIMATED
        self._ctx, self._config, self._net, self._sample_shape = ctx, config, net, sample_shape
        self._bench: Bench | None = None if config.latency is None else bench_of(ctx, config.timing)
        self._table = None if self._bench is None else LatencyTable(self._bench)
        self._builders: dict[int, Build] = {}
        self._known: dict[Shape, float] = {}
        self._origin = origin  # what shares are of; None: the whole network itself
        self._base: float | None = None

    def __call__(self, shapes: Sequence[Shape]) -> list[float]:
        """Shares, in order."""
        fresh = [s for s in dict.fromkeys([self._net.whole, *shapes]) if s not in self._known]
        self._known.update(zip(fresh, self._prices([self.model(s) for s in fresh]), strict=True))
        if self._base is None:
            self._base = (
                self._known[self._net.whole] if self._origin is None else self._prices([self._origin])[0]
            )
        return [self._known[s] / self._base for s in shapes]

    def _prices(self, models: Sequence[onnx.ModelProto]) -> list[float]:
        if self._table is not None:
            return self._table.price(models)
        return [float(sum(layer.macs for layer in layers_of(model))) for model in models]

    def confirmed(self, ranked: Sequence[Shape], goal: float) -> tuple[Shape, Reached]:
        """The first of some that keeps the goal when it is timed whole; where none does, the nearest.

        Where the table is too hopeful, it is as hopeful of others: those that would miss by as much are passed over.
        """
        tries: list[tuple[Shape, Reached]] = []
        hope = 1.0  # measured over predicted, the worst so far
        for shape in ranked:
            share = self([shape])[0]
            if share * hope > goal:
                continue
            if len(tries) == _CONFIRMED:
                break
            interval, tier = Interval(share, share, share), Tier.ESTIMATED
            if self._bench is not None:
                origin = self.model(self._net.whole) if self._origin is None else self._origin
                interval, tier = self._bench.confirm(origin, self.model(shape)), Tier.MEASURED
            reached = Reached(
                unit=self.unit, tier=tier, goal=goal, predicted=share, interval=interval, exhausted=False
            )
            tries.append((shape, reached))
            if reached.met:
                return tries[-1]
            hope = max(hope, interval.estimate / share)
        return min(tries, key=lambda one: one[1].interval.estimate)

    def model(self, shape: Shape) -> onnx.ModelProto:
        """A shape as it would be shipped in float, with weights that do not matter."""
        if shape.dropped not in self._builders:
            module = copy.deepcopy(self._net.module)
            leave_out(module, self._net.gone(shape))
            self._builders[shape.dropped] = builder(module, self._net.structure_at(shape), self._sample_shape)
        return self._builders[shape.dropped](self._net.keep(shape))

    def held_against_measurement(self) -> dict[str, JSON] | None:
        """Ranks and errors of the table on networks that are timed whole.

        Raises:
            StageFailedError: it ranks them worse than ``least_tau``: a search by it would find anything.
        """
        if self._bench is None or self._table is None:
            return None
        rng = np.random.default_rng([self._ctx.seed, 14])
        drawn = list(dict.fromkeys(self._net.random(rng) for _ in range(4 * (_FITTED + _MEASURED))))
        drawn = [shape for shape in drawn if shape != self._net.whole]
        if len(drawn) < _LEAST:
            raise StageFailedError(
                f"{len(drawn) + 1} networks are too few to hold a latency table against",
                fix="give the goal in macs",
            )
        apart = max(3, min(_MEASURED, len(drawn) // 3))  # judged on others than it is corrected by
        fitted, shapes = drawn[apart : apart + _FITTED], [self._net.whole, *drawn[:apart]]
        first = self.model(self._net.whole)
        fit_models, models = [self.model(s) for s in fitted], [self.model(s) for s in shapes]
        self._table.correct([first, *fit_models], [1.0, *self._timed(self._bench, first, fit_models)])
        self._known.clear()
        self._base = None
        tau, error = agreement(self(shapes), [1.0, *self._timed(self._bench, first, models[1:])])
        self._ctx.progress(
            f"elastic: the latency table ranks {apart} networks with tau {tau:.2f}, error {error:.1%}"
        )
        if not tau >= self._config.least_tau:
            raise StageFailedError(
                f"the latency table ranks networks with a Kendall tau of {tau:.2f}, and the least is "
                f"{self._config.least_tau}",
                fix="give the goal in macs, use a quieter machine, or prune with latency, which times whole networks",
            )
        return {
            "tau": tau,
            "error": error,
            "networks": apart,
            "corrected_by": len(fitted),
            "layers": len(self._table.times),
        }

    @staticmethod
    def _timed(bench: Bench, first: onnx.ModelProto, models: Sequence[onnx.ModelProto]) -> list[float]:
        """Whole networks as shares of the first, some at a time, the median of several looks."""
        found: list[float] = []
        for start in range(0, len(models), _TOGETHER):
            looks = [bench.ratios(first, models[start : start + _TOGETHER]) for _ in range(LOOKS)]
            found += [median(several) for several in zip(*looks, strict=True)]
        return found


class _Looks:
    """Validation accuracies, each looked at once."""

    def __init__(
        self,
        ctx: StageContext,
        config: ElasticConfig,
        net: SuperNet,
        data: Split,
        sample_shape: tuple[int, ...],
    ) -> None:
        self._ctx, self._net, self._data = ctx, net, data
        self._round: Callable[[nn.Module], nn.Module] | None = (
            _rounding(ctx, data, sample_shape) if config.quantized else None
        )
        self.found: dict[Shape, float] = {}

    def __call__(self, shape: Shape) -> float:
        """Accuracy of a shape, with batch norm estimated anew, in integers where that is asked for."""
        if shape not in self.found:
            module = self._net.alone(shape, self._data.x)
            if self._round is not None:
                module = self._round(module)
            self.found[shape] = evaluate(module, self._data.x_validation, self._data.y_validation)[1]
        return self.found[shape]

    def some(self, rng: np.random.Generator, n: int) -> list[Shape]:
        """Different shapes; all where there are few."""
        net = self._net
        if n == net.count:
            return net.every()
        found = dict.fromkeys([net.whole, net.least])
        while len(found) < n:
            found[net.random(rng)] = None
        return list(found)


def _rounding(ctx: StageContext, data: Split, shape: tuple[int, ...]) -> Callable[[nn.Module], nn.Module]:
    """Weights and activations on the device's grids, calibrated on a few samples: ranks change by it."""
    if ctx.hardware is None:
        raise StageFailedError("quantized: true needs a device", fix="name a target")
    scheme, samples = ctx.hardware.quantization, data.x[:256]
    settings = PtqSettings(tune=False)
    return lambda module: quantize_module(module, shape, scheme, samples, settings).graph


def _row(net: SuperNet, shape: Shape, accuracy: float, cost: float) -> dict[str, JSON]:
    return {
        "widths": dict[str, JSON](net.units(shape)),
        "left_out": list[JSON](net.gone(shape)),
        "accuracy": accuracy,
        "cost": cost,
    }


def _front(net: SuperNet, found: Mapping[Shape, float], cost: _Cost) -> list[JSON]:
    """Networks that are better than every cheaper one."""
    rows: list[JSON] = []
    best = -1.0
    for shape in sorted(found, key=lambda s: (cost([s])[0], -found[s])):
        if found[shape] > best:
            best = found[shape]
            rows.append(_row(net, shape, best, cost([shape])[0]))
    return rows
