"""Latency of a model on a device that is here, and its speed-up over the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import onnx

from hwopt.core.artifact import Artifact
from hwopt.core.backend import Hint, Recipe
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import HwoptError, StageFailedError
from hwopt.latency.causes import Case, Cause, causes
from hwopt.latency.families import by_family
from hwopt.latency.measure import Candidate, Effort, Inside, Measured, look_inside, measure_all, working
from hwopt.stages.benchmark.spec import BenchmarkConfig

ALONE: Final = "this model is the baseline, so its speed-up is 1 by definition"


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: BenchmarkConfig) -> StageResult:
    """Rounds against the baseline; a model that is its own baseline gets its latency only."""
    if ctx.hardware is None:
        raise StageFailedError("benchmark needs a device")
    # Real samples: zeros run faster. The training split, because the test split is for the evaluation.
    most = max(config.batch, config.throughput_batch if config.among else 1)
    sample = ctx.data().x_train[:most]
    if len(sample) < most:
        raise StageFailedError(
            f"the batch is {most}, and the training split has {len(sample)} samples",
            fix="lower benchmark.batch" if most == config.batch else "lower benchmark.throughput_batch",
        )
    same = inputs["model"].digest == inputs["baseline"].digest
    bench = Bench(config=config, hardware=ctx.hardware, seed=ctx.seed)
    facts, samples = bench.measure(
        inputs["model"].path, None if same else inputs["baseline"].path, sample=sample[: config.batch]
    )
    if config.among:
        facts["benchmark"]["throughput"] = bench.throughput(inputs["model"].path, sample)
    facts["benchmark"] |= {
        "model_digest": inputs["model"].digest,
        "baseline_digest": inputs["baseline"].digest,
    }
    ctx.progress(
        f"benchmark: p50 {facts['latency_ms']['p50']:.3f} ms at batch {config.batch} in "
        f"{facts['benchmark']['runtime']}"
    )
    table = ctx.workdir / "samples.json"
    table.write_text(pretty_json({"pairs": samples, "latency_ms": facts["latency_ms"]}))
    return StageResult(files={"samples": table}, facts={"tier": Tier.MEASURED.value, **facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Settings and device of one benchmark step."""

    config: BenchmarkConfig
    hardware: HardwareProfile
    seed: int

    def recipe(self) -> Recipe:
        """How every model is executed."""
        return Recipe(threads=self.config.threads, spinning=self.config.spinning, hint=Hint(self.config.hint))

    def effort(self) -> Effort:
        """How long and how exactly."""
        rate = self.config.rate_hz
        return Effort(
            seed=self.seed,
            half_width=self.config.half_width,
            budget_seconds=self.config.budget_seconds,
            processes=self.config.processes,
            gap_seconds=None if rate is None else 1 / rate,
        )

    def candidates(self, models: Sequence[Path], sample: Array) -> tuple[list[Candidate], dict[str, str]]:
        """Every model in every runtime that loads it, runtime by runtime; and why runtimes refused the last."""
        names = self.config.among or ((self.config.runtime,) if self.config.runtime else ())
        if not names:
            raise StageFailedError("benchmark needs a runtime")
        found: list[Candidate] = []
        refused: dict[str, str] = {}
        feed = {input_name(models[0]): sample}
        for name in names:
            mine = [
                Candidate(model=model, runtime=name, hardware=self.hardware, feed=feed, recipe=self.recipe())
                for model in models
            ]
            if len(names) == 1:
                return mine, {}
            for candidate in mine:  # a runtime that refuses one model may be the fastest for the other
                kept, why = working([candidate])
                found += kept
                if candidate.model == models[-1]:
                    refused |= why
        if all(candidate.model != models[-1] for candidate in found):
            reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
            raise StageFailedError(f"no runtime takes the model: {reasons}")
        return found, refused

    def measure(
        self, model: Path, baseline: Path | None, *, sample: Array
    ) -> tuple[dict[str, Any], list[JSON]]:
        """Latency and speed-up of one model, and every pair behind them.

        Args:
            baseline: the model to compare with; None where ``model`` is the baseline itself.
            sample: the input, of the batch size of the settings.
        """
        models = [baseline, model] if baseline is not None else [model]
        sides, refused = self.candidates(models, sample)
        mine, floats = (
            {side.runtime: index for index, side in enumerate(sides) if side.model == one}
            for one in (model, baseline)
        )
        if baseline is not None and not floats:
            raise StageFailedError("no runtime takes the float model that this is to be compared with")
        # Each with float in its own runtime, and each runtime with the first.
        pairs = [(mine[name], floats[name]) for name in mine if name in floats]
        for group in (list(mine.values()), list(floats.values())):
            pairs += [(index, group[0]) for index in group[1:]]
        result = measure_all(sides, self.effort(), pairs or None)
        best, ratios = result.fastest(list(mine.values()))
        inside = look_inside(sides[best])
        details = self._details(result, best, sides[best], inside)
        if len(mine) > 1 or refused:
            details["runtimes"] = {
                **{
                    sides[i].runtime: {"speed_to_the_chosen": ratio, "p50_ms": result.latency_ms(i)["p50"]}
                    for i, ratio in ratios.items()
                },
                **{name: {"refused": why} for name, why in refused.items()},
            }
        speedup: JSON = {"estimate": 1.0, "low": 1.0, "high": 1.0}
        samples: list[JSON] = []
        if baseline is None:
            details["pairs"] = {"note": ALONE}
        else:
            # Over float where float is fastest: one yardstick, whichever runtime a version is best in.
            base, _ = result.fastest(list(floats.values()))
            found = result.compare(best, base)
            speedup = found.interval().to_json()
            details["pairs"] = {
                **found.to_json(),
                "half_width_reached": found.narrow(self.config.half_width),
                "against": sides[base].runtime,
            }
            samples = [
                {"ratio": r, "clean": c, "first": f, "process": s[0]}
                for r, c, f, s in zip(found.ratios, found.clean, found.first, found.sessions, strict=True)
            ]
            own = floats.get(sides[best].runtime, base)
            ratio = result.compare(best, own).interval()
            details["speedup_in_its_runtime"] = ratio.to_json()
            if min(ratio.low, found.interval().low) <= 1:
                details["no_faster_because"] = [
                    cause.to_json() for cause in self._causes(result, sides, best, own, base, inside)
                ]
        facts = {"latency_ms": dict(result.latency_ms(best)), "speedup": speedup, "benchmark": details}
        return facts, samples

    def _causes(
        self, result: Measured, sides: Sequence[Candidate], best: int, own: int, base: int, inside: Inside
    ) -> list[Cause]:
        """Why side ``best`` is no faster than float in its own runtime, or in the one where float is fastest."""
        found: list[Cause] = []
        if own != base and result.compare(best, base).interval().low <= 1:
            found.append(
                Cause(
                    name="other_runtime",
                    text=f"float runs faster in {sides[base].runtime} than this does in {sides[best].runtime}",
                    operators=(),
                    fix=f"ship float in {sides[base].runtime}, or quantize for its device profile",
                )
            )
        if result.compare(best, own).interval().low <= 1:
            model = sides[best].model
            case = Case(
                graph=onnx.load(model).graph,
                path=model,
                model=inside,
                baseline=look_inside(sides[own]),
                baseline_seconds=result.rounds.seconds(own),
            )
            found += causes(case)
        return found

    def _details(self, result: Measured, side: int, candidate: Candidate, inside: Inside) -> dict[str, Any]:
        footprint = inside.footprint
        return {
            "runtime": candidate.runtime,
            "recipe": candidate.recipe.to_json(),
            "runtime_settings": dict(inside.describe),
            "batch": self.config.batch,
            "rate_hz": self.config.rate_hz,
            "processes": self.config.processes,
            "steady": result.steady[side],
            "reference": result.reference(side),
            "preflight": result.preflight.to_json(),
            "steal_share": result.steal,
            "gpu": [state.to_json() for state in result.gpu],
            "memory_mb": {name: _times(footprint[f"{name}_bytes"], 1e-6) for name in ("peak", "added")},
            "load_ms": _times(footprint["load_seconds"], 1e3),
            "first_inference_ms": _times(footprint["first_seconds"], 1e3),
            "joules": inside.joules,
            # By the runtime's own clock: it says where the time goes, the pairs say how much there is.
            "operator_microseconds": by_family(inside.operators),
        }

    def throughput(self, model: Path, sample: Array) -> dict[str, JSON]:
        """The better runtime for large batches: samples a second."""
        size = len(sample)
        recipe = replace(self.recipe(), hint=Hint.THROUGHPUT)
        try:
            sides, refused = self.candidates([model], sample)
            sides = [replace(side, recipe=recipe) for side in sides]
            result = measure_all(sides, replace(self.effort(), gap_seconds=None, samples=0))
        except HwoptError as error:  # batch 1 is measured, and stays
            return {"batch": size, "runtime": None, "reason": error.problems[0].problem}
        best, ratios = result.fastest(range(len(sides)))
        return {
            "batch": size,
            "runtime": sides[best].runtime,
            "runtimes": {
                **{
                    sides[i].runtime: {
                        "speed_to_the_chosen": ratio,
                        "samples_per_second": size / result.rounds.seconds(i),
                    }
                    for i, ratio in ratios.items()
                },
                **{name: {"refused": why} for name, why in refused.items()},
            },
        }


def _times(value: JSON, unit: float) -> float | None:
    return float(value) * unit if isinstance(value, int | float) else None


def input_name(model: Path) -> str:
    """The one input of a model that a pipeline made."""
    graph = onnx.load(model, load_external_data=False).graph
    stored = {i.name for i in graph.initializer}
    (name,) = (i.name for i in graph.input if i.name not in stored)
    return str(name)
