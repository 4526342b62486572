"""Search by measuring: what would be fast is timed before anything is trained, then widths are walked down.

1. For every width of the ladder: channels by importance and measured latency, and the layers that are worth
   running in integer at that width. Only shapes matter for time, so nothing is trained yet.
2. Widths from wide to narrow: cut, train briefly under the float model, look at the validation split; stop
   where more is lost than the goal allows, or where the training budget would be exceeded.
3. From the fastest version on: train the width longer, quantize it where that is faster, validate; the first
   version that keeps the goal is the result. Where none does, the one that loses least is kept and the goal
   is reported as missed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from hwopt import checkpoints
from hwopt.core.artifact import Artifact
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.latency.bench import bench_of
from hwopt.latency.costs import exported
from hwopt.latency.precision import Precision, fastest_precision, layer_names
from hwopt.pruning.cut import full_widths, narrowed
from hwopt.pruning.masks import KeepZeros
from hwopt.pruning.widths import Widths
from hwopt.quantization.graph import quiet_exporters
from hwopt.quantization.insert import deployed
from hwopt.quantization.onnx_export import export_onnx
from hwopt.quantization.ptq import quantize_module
from hwopt.quantization.settings import PtqSettings
from hwopt.slimming import Slimmer, pruned_recipe
from hwopt.stages.auto.rung import Budget, Rung, Version
from hwopt.stages.auto.spec import AutoConfig
from hwopt.teachers import Lesson, teacher_of
from hwopt.training.batches import Split, split
from hwopt.training.evaluation import evaluate
from hwopt.training.loop import fit

_SLACK: Final = 1.5  # of the drop, while a width has had its short training only
_HOPELESS: Final = 2.0  # of the drop: more than a longer training wins back
_ASSUMED: Final = 10  # epochs of a float training that was done elsewhere
_RANGES: Final = 64  # samples for quantizing untrained networks


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: AutoConfig) -> StageResult:
    """From a float checkpoint and a goal to the version to ship, with all that was tried on the way."""
    if ctx.hardware is None:
        raise StageFailedError("auto needs a device", fix="name a target")
    search = _Search(ctx, inputs, config, ctx.hardware)
    rungs = search.ladder()
    search.descend(rungs)
    rung, version = search.choose(rungs)
    return search.result(rungs, rung, version)


class _Search:
    def __init__(
        self, ctx: StageContext, inputs: Mapping[str, Artifact], config: AutoConfig, hardware: HardwareProfile
    ) -> None:
        self.ctx, self.config, self.hardware = ctx, config, hardware
        self.network = checkpoints.load(inputs["checkpoint"].path, ctx.import_root, ctx.model)
        self.data: Split = split(ctx.data(), config.tune.validation_share, ctx.seed)
        if not len(self.data.x_validation):
            raise StageFailedError(
                "auto judges by the validation split, and it is empty",
                fix="set tune.validation_share above 0",
            )
        self.bench = bench_of(ctx, config.timing)
        self.shape = self.network.recipe.sample_shape
        self.float = self.network.module
        source = inputs.get("source", inputs["checkpoint"])
        if source.digest != inputs["checkpoint"].digest:
            self.float = checkpoints.load(source.path, ctx.import_root, ctx.model).module
        self.origin = exported(self.float, self.shape)
        started = time.process_time()
        teacher = teacher_of(ctx, inputs, config.distill)
        self.lesson = Lesson(
            data=self.data,
            seed=ctx.seed,
            ctx=ctx,
            teacher=teacher,
            distill=config.distill,
            sparse=self.network.recipe.sparse,
        )
        _, self.whole = evaluate(self.float, self.data.x_validation, self.data.y_validation)
        self.step_seconds = self._step_seconds()
        self.budget = Budget(config.cost * self._float_seconds(inputs))
        self.budget.before = time.process_time() - started
        self.reason = "the narrowest width of the ladder was reached"

    @property
    def batch(self) -> int:
        """Samples of a training step."""
        given = self.config.tune.batch_size
        return len(self.data.x) if given == "full" else given

    # --- cost -------------------------------------------------------------------------------------------

    def _step_seconds(self) -> float:
        """CPU time of one training step of the float network."""
        trial = copy.deepcopy(self.float)
        few = Split(
            x=self.data.x[: 8 * self.batch],
            y=self.data.y[: 8 * self.batch],
            x_validation=self.data.x_validation[:0],
            y_validation=self.data.y_validation[:0],
        )
        settings = self.config.tune.model_copy(update={"epochs": 1, "early_stopping": None})
        history = fit(trial, few, settings, seed=0, progress=lambda text: None, label="timing")
        return history.cpu_seconds / max(history.steps, 1)

    def _float_seconds(self, inputs: Mapping[str, Artifact]) -> float:
        """CPU time that the float training took."""
        facts = self.ctx.source_facts.get("training")
        if isinstance(facts, Mapping) and isinstance(facts.get("cpu_seconds"), float):
            return float(facts["cpu_seconds"])
        self.ctx.progress(f"auto: what the float training cost is not known; {_ASSUMED} epochs are assumed")
        return _ASSUMED * self.step_seconds * len(self.data.x) / self.batch

    def _estimate(self, rung: Rung, epochs: int) -> float:
        """CPU time of a training at a width; time falls more slowly than latency."""
        share = rung.in_float**0.7
        steps = epochs * len(self.data.x) / self.batch
        return float(self.step_seconds * share * steps)

    # --- 1: what would be fast --------------------------------------------------------------------------

    def ladder(self) -> list[Rung]:
        """The float model and every width of the ladder that is faster than the one before."""
        slimmer = self.slimmer(self.network.module)
        slimmer.open_groups()
        full = full_widths(slimmer.structure)
        start = 1.0 if self.float is self.network.module else self.latency_of(slimmer, full)
        rungs = [self.rung(start, slimmer, full, start)]
        scores = slimmer.scores(self.config.importance)
        limit = () if self.config.latency is None else (self.config.latency,)
        for share in sorted({*self.config.widths, *limit}, reverse=True):
            # No group is wider than at the rung before: the networks are cut out of each other.
            most = rungs[-1].widths
            solution, reached = slimmer.towards(share, "latency", Tier.MEASURED, scores, most=most)
            rung = self.rung(share, slimmer, solution.widths, reached.interval.estimate)
            if not rung.faster_than(rungs[-1]):
                continue
            rungs.append(rung)
            if reached.exhausted:
                break  # nothing is narrower
        self.first = rungs[0]
        return rungs

    def latency_of(self, slimmer: Slimmer, widths: Widths) -> float:
        """Share of the float model's latency."""
        model = slimmer.model_at(narrowed(slimmer.structure, widths))
        return self.bench.confirm(self.origin, model).estimate

    def slimmer(self, module: nn.Module) -> Slimmer:
        return Slimmer(
            module=module,
            sample_shape=self.shape,
            rules=self.hardware.pruning,
            samples=self.data.x,
            labels=self.data.y,
            bench=self.bench,
            origin=self.origin,
            seed=self.ctx.seed,
        )

    def rung(self, share: float, slimmer: Slimmer, widths: Widths, in_float: float = 1.0) -> Rung:
        """Time one width in float and in its best mixture of precisions."""
        model = slimmer.model_at(narrowed(slimmer.structure, widths))
        samples = self.data.x[:_RANGES].numpy()
        name = model.graph.input[0].name
        try:
            precision: Precision | None = fastest_precision(
                model, self.hardware.quantization, [{name: s} for s in np.array_split(samples, 4)], self.bench
            )
        except StageFailedError as error:
            self.ctx.progress(f"auto: no integer version at {share:g}: {error.problems[0].problem}")
            precision = None
        quantized = None if precision is None else in_float * precision.ratio
        text = f"auto: width {share:g}: float {in_float:.3f}"
        if precision is not None and quantized is not None:
            text += (
                f", {sum(precision.integer)} of {len(precision.integer)} layers in integer {quantized:.3f}"
            )
        self.ctx.progress(text)
        return Rung(share=share, widths=widths, in_float=in_float, precision=precision, quantized=quantized)

    # --- 2: how narrow may it be ------------------------------------------------------------------------

    def descend(self, rungs: list[Rung]) -> None:
        """Cut and train from rung to rung."""
        self.budget.started = time.process_time()
        first = rungs[0]
        first.module, first.recipe = self.network.module, self.network.recipe
        first.drop = self.drop(first.module)
        module, recipe = copy.deepcopy(self.network.module), self.network.recipe
        slimmer = self.slimmer(module)
        needed = self.config.latency
        for index, rung in enumerate(rungs[1:], 1):
            wider_will_do = needed is not None and rungs[index - 1].versions()[0][0] <= needed
            if wider_will_do and self.config.accuracy_drop is None:
                self.reason = "the latency asked for was reached"
                return
            epochs = self.config.tune.epochs + self.config.polish.epochs
            if not self.budget.allows(self._estimate(rung, epochs)):
                self.reason = f"the training budget of {self.config.cost:g} float trainings ends here"
                return
            scores = slimmer.scores(self.config.importance)
            counters = slimmer.cut_to(rung.widths, scores)
            recipe = pruned_recipe(recipe, module, counters)
            self.train(module, self.config.tune, f"auto, width {rung.share:g}")
            rung.module, rung.recipe = copy.deepcopy(module), recipe
            rung.drop = self.drop(module)
            self.ctx.progress(f"auto: width {rung.share:g} loses {rung.drop * 100:.2f} pp in float so far")
            allowed = self.config.accuracy_drop
            if allowed is not None and rung.drop > max(allowed * _SLACK, allowed + 0.001):
                self.reason = f"width {rung.share:g} loses more than the goal allows"
                return

    def train(self, module: nn.Module, settings: Any, label: str) -> None:
        self.lesson.give(module, settings, label)

    def drop(self, module: nn.Module) -> float:
        """Accuracy that is lost on the validation split."""
        return self.whole - evaluate(module, self.data.x_validation, self.data.y_validation)[1]

    # --- 3: which version -------------------------------------------------------------------------------

    def choose(self, rungs: list[Rung]) -> tuple[Rung, Version]:
        """The first version that keeps the goal, the fastest first; else the one that loses least."""
        allowed = self.config.accuracy_drop
        hopeless = float("inf") if allowed is None else _HOPELESS * allowed + 0.002
        trained = [r for r in rungs if r.module is not None]
        open_rungs = [r for r in trained if (r.drop or 0.0) <= hopeless] or trained
        options = [(share, q, rung) for rung in open_rungs for share, q in rung.versions()]
        limit = self.config.latency
        within = [o for o in options if limit is None or o[0] <= limit]
        order = sorted(within or options, key=lambda o: o[0])
        if self.config.accuracy_drop is None and within:
            order = order[::-1]  # the widest that is fast enough loses least
        best: tuple[Rung, Version] | None = None
        polished: dict[float, Version] = {}
        for latency, quantized, rung in order:
            if rung.share not in polished:
                polished[rung.share] = self.polished(rung)
            version = polished[rung.share]
            if quantized:
                version = self.quantized(rung, version)
            version.latency = latency
            rung.tried.append({"quantized": quantized, "latency": latency, "drop": version.drop})
            self.ctx.progress(
                f"auto: width {rung.share:g}{' quantized' if quantized else ''}: latency {latency:.3f}, "
                f"loses {version.drop * 100:.2f} pp"
            )
            if best is None or version.drop < best[1].drop:
                best = (rung, version)
            if self.config.accuracy_drop is None or version.drop <= self.config.accuracy_drop:
                return rung, version
        assert best is not None  # noqa: S101 - the network as given is among the options
        return best

    def polished(self, rung: Rung) -> Version:
        """A rung's network after its long training, where the budget has room for it."""
        assert rung.module is not None and rung.recipe is not None  # noqa: S101, PT018 - only trained rungs
        module = copy.deepcopy(rung.module)
        drop = rung.drop or 0.0
        if rung is not self.first and self.budget.allows(self._estimate(rung, self.config.polish.epochs)):
            trained = copy.deepcopy(module)
            self.train(trained, self.config.polish, f"auto, polishing width {rung.share:g}")
            if (after := self.drop(trained)) <= drop:
                module, drop = trained, after
        return Version(module=module, recipe=rung.recipe, drop=drop, latency=rung.in_float, facts={})

    def quantized(self, rung: Rung, version: Version) -> Version:
        """The same network with the layers in integer that are faster so; trained where calibration loses."""
        assert rung.precision is not None  # noqa: S101 - the version exists
        rules = rung.precision.rules(layer_names(version.module, self.shape))
        samples = self.samples()
        made = quantize_module(
            version.module,
            self.shape,
            self.hardware.quantization,
            samples,
            PtqSettings(rules=rules),
            seed=self.ctx.seed,
            progress=self.ctx.progress,
        )
        drop = self.drop(made.graph)
        allowed = self.config.accuracy_drop
        lost = drop - version.drop
        qat = self.config.qat
        facts = dict(made.facts)
        too_much = lost > 0.001 or (allowed is not None and drop > allowed >= version.drop)
        if qat is not None and too_much and self.budget.allows(2 * self._estimate(rung, qat.epochs)):
            logits = None
            if self.config.distill is not None:
                logits = self.lesson.logits
            with quiet_exporters():  # copying torch.export's tree specs warns about itself
                trained = copy.deepcopy(made.graph)
            history = fit(
                trained,
                self.data,
                qat,
                seed=self.ctx.seed,
                progress=self.ctx.progress,
                label="auto, qat",
                teacher=logits,
                hooks=[KeepZeros(trained)] if self.network.recipe.sparse else [],
            )
            if (after := self.drop(trained)) <= drop:
                made.graph, drop = trained, after
                facts["qat_history"] = list(history.epochs)
        recipe = checkpoints.quantized_recipe(
            version.recipe,
            version.module,
            self.hardware.quantization,
            self.hardware.name,
            made.settings.rules,
            made.reference.meta.get("scaled", []),
        )
        return Version(module=made.graph, recipe=recipe, drop=drop, latency=rung.in_float, facts=facts)

    def samples(self) -> Tensor:
        order = np.random.default_rng([self.ctx.seed, 2]).permutation(len(self.data.x))
        return self.data.x[torch.from_numpy(order[: self.config.calibration_samples])]

    def deployed(self, version: Version) -> onnx.ModelProto:
        """The version as the file that is shipped."""
        if version.recipe.scheme is None:
            return exported(version.module, self.shape)
        path = self.ctx.workdir / "timed.onnx"
        assert isinstance(version.module, fx.GraphModule)  # noqa: S101 - as quantize_module made it
        export_onnx(deployed(version.module), self.shape, path, {})
        return onnx.load(path)

    # --- the result -------------------------------------------------------------------------------------

    def result(self, rungs: list[Rung], rung: Rung, version: Version) -> StageResult:
        interval = self.bench.confirm(self.origin, self.deployed(version))
        version.latency = interval.estimate
        path, table = self.ctx.workdir / "model.safetensors", self.ctx.workdir / "tried.json"
        checkpoints.save(path, version.module, version.recipe)
        tried: list[JSON] = [r.to_json() for r in rungs]
        table.write_text(pretty_json(tried))
        allowed, limit = self.config.accuracy_drop, self.config.latency
        quantized = version.recipe.scheme is not None
        facts: dict[str, Any] = {
            "auto": {
                "width": rung.share,
                "widths": dict(rung.widths),
                "integer_layers": rung.precision.to_json() if quantized and rung.precision else None,
                "validation_drop": version.drop,
                "latency": version.latency,
                "latency_interval": interval.to_json(),
                "tier": Tier.MEASURED.value,
                "stopped": self.reason,
                "goal": " and ".join(
                    f"{name} ≤ {value:g}"
                    for name, value in (("accuracy_drop", allowed), ("latency", limit))
                    if value is not None
                ),
                "met": (allowed is None or version.drop <= allowed)
                and (limit is None or version.latency <= limit),
                "tried": tried,
            },
            "asked_integer": quantized,
            "training": {"cpu_seconds": self.budget.spent},
            **{k: v for k, v in version.facts.items() if k != "trials"},
        }
        return StageResult(files={"checkpoint": path, "tried": table}, facts=facts)
