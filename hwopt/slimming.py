"""A network on its way to fewer channels: examined once, then cut to a goal as often as needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import onnx
from torch import Tensor, nn

from hwopt.checkpoints import Recipe, shapes_of
from hwopt.core.canonical import JSON
from hwopt.core.hardware import Pruning
from hwopt.core.measurement import Interval, Tier
from hwopt.errors import ConfigError, StageFailedError
from hwopt.latency.bench import Bench
from hwopt.latency.costs import Build, Cost, builder, exported, folded, macs, measured, roofline
from hwopt.pruning import importance as importances
from hwopt.pruning.cut import SINGLE, Keep, attributes_at, breaks, cut, examine, grouped, narrowed, strongest
from hwopt.pruning.structure import Structure
from hwopt.pruning.widths import Solution, Widths, nearest, solve
from hwopt.quantization.graph import to_graph
from hwopt.training.evaluation import refresh_batch_norm

_SAMPLES: Final = 2048  # that importance is measured on
_BATCH: Final = 32
_AIM: Final = 0.985  # of the goal: what is reached is measured again, with an interval
_TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A goal and what came of it."""

    unit: str
    tier: Tier
    goal: float  # share of the float model's cost
    predicted: float  # when the widths were chosen
    interval: Interval  # afterwards; for estimates both ends are the estimate
    exhausted: bool  # no legal widths are cheaper

    @property
    def met(self) -> bool:
        """Whether the estimate keeps the goal."""
        return self.interval.estimate <= self.goal

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "unit": self.unit,
            "tier": self.tier.value,
            "goal": self.goal,
            "predicted": self.predicted,
            "reached": self.interval.to_json(),
            "met": self.met,
            "exhausted": self.exhausted,
        }


@dataclass(slots=True, kw_only=True)
class Slimmer:
    """One network and its groups.

    Args:
        module: float network; ``slim`` cuts it in place.
        origin: the float network that costs are shares of, as ONNX; None: the network as given.
        samples, labels: of the training split.
    """

    module: nn.Module
    sample_shape: tuple[int, ...]
    rules: Pruning
    samples: Tensor
    labels: Tensor
    bench: Bench | None = None
    origin: onnx.ModelProto | None = None
    seed: int = 0
    progress: Callable[[str], None] = lambda text: None
    structure: Structure = field(init=False)
    build: Build | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Read the structure; every group is tried."""
        self._examine()

    def _examine(self) -> None:
        graph = to_graph(self.module, self.sample_shape, fold_batch_norm=False)
        for parameter in self.module.parameters():
            parameter.requires_grad_(True)
        self.structure = examine(self.module, graph, self.sample_shape)
        self.build = None

    def open_groups(self) -> None:
        """ConfigError where nothing can be cut, with the reasons; a network at its narrowest is none."""
        narrow = any(why == SINGLE for why in self.structure.frozen.values())
        if not self.structure.groups and not narrow:
            reasons = "; ".join(f"{layer}: {why}" for layer, why in list(self.structure.frozen.items())[:6])
            raise ConfigError(
                f"no group of channels can be cut: {reasons or 'the network has no layers'}",
                fix="take widths in forward() from tensors; see docs/pruning.md",
            )

    def scores(self, method: str) -> importances.Scores:
        """Importance of every unit."""
        x, y = self.samples[:_SAMPLES], self.labels[:_SAMPLES]
        batches = list(zip(x.split(_BATCH), y.split(_BATCH), strict=True)) if len(y) == len(x) else []
        return importances.importance(method, self.module, self.structure, batches, seed=self.seed)

    def cost(self, unit: str, tier: Tier) -> Cost:
        """The cost that a goal is about, as a share of the origin's."""
        if self.build is None:
            self.build = builder(self.module, self.structure, self.sample_shape)
        if unit == "macs":
            return macs(self.structure, self.build, self.origin)
        if self.bench is None:
            raise StageFailedError("a latency needs a device")
        if self.bench.hardware.fpga is not None:
            return folded(self.structure, self.build, self.bench.hardware, self.origin)
        if tier is Tier.ESTIMATED:
            batch = len(self.bench.sample)
            return roofline(self.structure, self.build, self.bench.hardware, batch, self.origin)
        return measured(self.structure, self.build, self.bench, self.origin)

    def towards(
        self,
        goal: float,
        unit: str,
        tier: Tier,
        scores: importances.Scores,
        fixed: Mapping[str, int] | None = None,
        most: Mapping[str, int] | None = None,
    ) -> tuple[Solution, Reached]:
        """Widths for a goal, confirmed by a second and closer look; the nearest where it cannot be met."""
        cost = self.cost(unit, tier)
        aim = goal if tier is Tier.ESTIMATED else goal * _AIM
        tries: list[tuple[Solution, Reached]] = []
        for _ in range(_TRIES):
            solution = solve(
                self.structure, scores, cost, aim, self.rules, fixed, most, progress=self.progress
            )
            interval = self._look(solution, cost)
            reached = Reached(
                unit=unit,
                tier=tier,
                goal=goal,
                predicted=solution.cost,
                interval=interval,
                exhausted=not solution.met,
            )
            tries.append((solution, reached))
            if reached.met or reached.exhausted:
                return tries[-1]
            aim *= goal / interval.estimate * _AIM
        return min(tries, key=lambda one: one[1].interval.estimate)

    def _look(self, solution: Solution, cost: Cost) -> Interval:
        """The cost again: where it is measured, in fresh sessions with an interval."""
        if cost.tier is not Tier.MEASURED or self.bench is None or self.build is None:
            return Interval(solution.cost, solution.cost, solution.cost)
        keep = narrowed(self.structure, solution.widths)
        return self.bench.confirm(self.reference(), self.build(keep))

    def model_at(self, keep: Keep) -> onnx.ModelProto:
        """The float model with these units."""
        if self.build is None:
            self.build = builder(self.module, self.structure, self.sample_shape)
        return self.build(keep)

    def reference(self) -> onnx.ModelProto:
        """What costs are shares of."""
        return self.origin if self.origin is not None else exported(self.module, self.sample_shape)

    def cut_to(self, widths: Widths, scores: importances.Scores) -> dict[str, int]:
        """Cut in place and estimate batch-norm statistics anew; the counters for the recipe."""
        why = breaks(self.module, self.structure, widths, self.sample_shape)
        if why is not None:
            raise StageFailedError(
                f"the network does not run at the widths chosen: {why}",
                fix="its forward() ties groups to each other; keep some of them whole: layers: {NAME: 0}",
            )
        keep = strongest(self.structure, scores, widths)
        cut(self.module, self.structure, keep)
        counters = attributes_at(self.structure, keep) | grouped(self.module)
        self.structure, self.build = self.structure.after(keep), None
        refresh_batch_norm(self.module, self.samples)
        return counters


def own_widths(
    structure: Structure, layers: Mapping[str, float], rules: Pruning, first: Widths, part: float = 1.0
) -> Widths:
    """Widths of the groups that patterns name, each with a ratio; 0 keeps a group whole.

    Args:
        first: widths that the ratios are of, before the first of several cuts.
        part: of the way to the ratio, on a logarithmic scale.
    Raises:
        ConfigError: a pattern that matches no group, or only layers that cannot be cut, with the reason.
    """
    found: Widths = {}
    for pattern, ratio in layers.items():
        matching = [g for g in structure.groups if re.fullmatch(pattern, g.layer)]
        if not matching:
            cannot = {n: why for n, why in structure.frozen.items() if re.fullmatch(pattern, n)}
            names = ", ".join(g.layer for g in structure.groups)
            if cannot:
                name, why = next(iter(cannot.items()))
                raise ConfigError(f"the channels of {name} cannot be cut: {why}", fix=f"groups: {names}")
            raise ConfigError(f"no group of channels is called {pattern!r}", fix=f"groups: {names}")
        for group in matching:
            full = first[group.layer]
            wanted = nearest(group, full * (1 - ratio) ** part, rules)
            found[group.layer] = group.width if ratio == 0 else wanted
    return found


def pruned_recipe(recipe: Recipe, module: nn.Module, counters: Mapping[str, int]) -> Recipe:
    """The recipe of a network after cutting."""
    return replace(recipe, shapes=shapes_of(module), counters={**recipe.counters, **counters})
