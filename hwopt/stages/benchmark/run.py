"""Latency of a model on a device that is here, and its speed-up over the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from hwopt.errors import StageFailedError
from hwopt.latency.causes import Case, causes
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
        """Every model in every runtime that loads it, runtime by runtime."""
        names = self.config.among or ((self.config.runtime,) if self.config.runtime else ())
        if not names:
            raise StageFailedError("benchmark needs a runtime")
        found: list[Candidate] = []
        refused: dict[str, str] = {}
        for name in names:
            feed = {input_name(models[0]): sample}
            mine = [
                Candidate(model=model, runtime=name, hardware=self.hardware, feed=feed, recipe=self.recipe())
                for model in models
            ]
            if len(names) > 1:
                _, why = working(mine)
                refused |= why
                if why:
                    continue
            found += mine
        if not found:
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
        result = measure_all(sides, self.effort())
        mine = [index for index, side in enumerate(sides) if side.model == model]
        best, ratios = result.fastest(mine)
        if baseline is None:
            speedup: JSON = {"estimate": 1.0, "low": 1.0, "high": 1.0}
            pairs: dict[str, JSON] = {"note": ALONE}
            samples: list[JSON] = []
        else:
            # Over float where float is fastest: one yardstick, whichever runtime a version is best in.
            base, _ = result.fastest([index for index, side in enumerate(sides) if side.model == baseline])
            found = result.compare(best, base)
            speedup = found.interval().to_json()
            pairs = {**found.to_json(), "steady": result.steady, "half_width_reached": result.rounds.reached}
            samples = [
                {"ratio": r, "clean": c, "first": f, "process": s[0]}
                for r, c, f, s in zip(found.ratios, found.clean, found.first, found.sessions, strict=True)
            ]
        inside = look_inside(sides[best])
        details = self._details(result, best, sides[best], inside) | {"pairs": pairs}
        if len(mine) > 1 or refused:
            details["runtimes"] = {
                **{
                    sides[i].runtime: {"speed_to_the_chosen": ratio, "p50_ms": result.latency_ms(i)["p50"]}
                    for i, ratio in ratios.items()
                },
                **{name: {"refused": why} for name, why in refused.items()},
            }
        own = None if baseline is None else result.compare(best, best - 1).interval()
        if own is not None:
            details["speedup_in_its_runtime"] = own.to_json()
        if own is not None and own.low <= 1:
            case = Case(
                graph=onnx.load(model).graph,
                path=model,
                model=inside,
                baseline=look_inside(sides[best - 1]),
                call_seconds=result.rounds.seconds(best),
                baseline_seconds=result.rounds.seconds(best - 1),
            )
            details["no_faster_because"] = [cause.to_json() for cause in causes(case)]
        facts = {"latency_ms": dict(result.latency_ms(best)), "speedup": speedup, "benchmark": details}
        return facts, samples

    def _details(self, result: Measured, side: int, candidate: Candidate, inside: Inside) -> dict[str, Any]:
        footprint = inside.footprint
        return {
            "runtime": candidate.runtime,
            "recipe": candidate.recipe.to_json(),
            "runtime_settings": dict(inside.describe),
            "batch": self.config.batch,
            "rate_hz": self.config.rate_hz,
            "processes": self.config.processes,
            "steady": result.steady,
            "reference": self._reference(result, side),
            "preflight": result.preflight.to_json(),
            "steal_share": result.steal,
            "gpu": [state.to_json() for state in result.gpu],
            "memory_mb": {
                "peak": int(str(footprint["peak_bytes"])) / 1e6,
                "added": int(str(footprint["added_bytes"])) / 1e6,
            },
            "load_ms": float(str(footprint["load_seconds"])) * 1e3,
            "first_inference_ms": float(str(footprint["first_seconds"])) * 1e3,
            "joules": inside.joules,
            # By the runtime's own clock: it says where the time goes, the pairs say how much there is.
            "operator_microseconds": by_family(inside.operators),
        }

    def _reference(self, result: Measured, side: int) -> dict[str, JSON] | None:
        """With the time on record where the device was calibrated."""
        found = result.reference(side)
        kept = self.hardware.calibration
        return None if found is None else found | {"on_record_ms": kept.reference_ms if kept else None}

    def throughput(self, model: Path, sample: Array) -> dict[str, JSON]:
        """The better runtime for large batches: samples a second."""
        size = len(sample)
        sides, refused = self.candidates([model], sample)
        result = measure_all(sides, self.effort())
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


def input_name(model: Path) -> str:
    """The one input of a model that a pipeline made."""
    graph = onnx.load(model, load_external_data=False).graph
    stored = {i.name for i in graph.initializer}
    (name,) = (i.name for i in graph.input if i.name not in stored)
    return str(name)
