"""Latency of a model on a device that is here, and its speed-up over the float model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwopt.core.artifact import Artifact
from hwopt.core.backend import BackendSpec, Recipe, Runtime
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.dataset import Array
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.plugins import load_reference, resolve
from hwopt.stages.benchmark.pairs import LOOK_CONFIDENCE, Call, compare, percentiles
from hwopt.stages.benchmark.spec import BenchmarkConfig

SESSIONS = 3  # fresh loads of each side: one lucky memory layout is not a result


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: BenchmarkConfig) -> StageResult:
    """Pairs against the baseline; a model that is its own baseline gets its latency only."""
    if ctx.hardware is None or config.runtime is None:
        raise StageFailedError("benchmark needs a device and a runtime")
    backend: BackendSpec = resolve("backend", config.runtime)
    recipe = Recipe(threads=config.threads)
    # Real samples: zeros run faster. The training split, because the test split is for the evaluation.
    sample = ctx.data().x_train[: config.batch]
    if len(sample) < config.batch:
        raise StageFailedError(
            f"the batch is {config.batch}, and the training split has {len(sample)} samples",
            fix="lower benchmark.batch",
        )
    loaded: list[Runtime] = []

    def sessions(path: Path) -> list[Call]:
        runtimes = [load_reference(backend.load)(path, recipe, ctx.hardware) for _ in range(SESSIONS)]
        loaded.extend(runtimes)
        return [_call(runtime, sample) for runtime in runtimes]

    try:
        candidate = sessions(inputs["model"].path)
        own_baseline = inputs["model"].digest == inputs["baseline"].digest
        speedup: JSON = {"estimate": 1.0, "low": 1.0, "high": 1.0}
        pairs: dict[str, JSON] = {"note": "the float model is the baseline, so its speed-up is 1 by definition"}
        samples: list[JSON] = []
        if not own_baseline:
            result = compare(
                sessions(inputs["baseline"].path), candidate,
                seed=ctx.seed, half_width=config.half_width, budget_seconds=config.budget_seconds,
            )
            speedup = result.interval().to_json()
            pairs = {
                "count": len(result.ratios), "clean_share": result.clean_share, "degraded": result.degraded,
                "steady": result.steady, "half_width_reached": result.reached, "confidence": LOOK_CONFIDENCE,
            }
            samples = [
                {"ratio": ratio, "clean": clean, "first": first}
                for ratio, clean, first in zip(result.ratios, result.clean, result.first, strict=True)
            ]
        seconds = percentiles(candidate[0])
    finally:
        for runtime in loaded:
            runtime.close()
    latency: dict[str, JSON] = {
        name: value if name == "count" or value is None else value * 1e3 for name, value in seconds.items()
    }
    ctx.progress(f"benchmark: p50 {latency['p50']:.3f} ms at batch {config.batch}")
    table = ctx.workdir / "samples.json"
    table.write_text(pretty_json({"pairs": samples, "latency_ms": latency}))
    return StageResult(
        files={"samples": table},
        facts={
            "tier": Tier.MEASURED.value,
            "latency_ms": latency,
            "speedup": speedup,
            "benchmark": {
                "runtime": config.runtime, "recipe": recipe.to_json(), "batch": config.batch, "pairs": pairs,
                "model_digest": inputs["model"].digest, "baseline_digest": inputs["baseline"].digest,
            },
        },
    )


def _call(runtime: Runtime, sample: Array) -> Call:
    (name,) = runtime.inputs()
    feed = {name: sample}
    return lambda: runtime.run(feed)
