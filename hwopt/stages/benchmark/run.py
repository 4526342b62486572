"""Latency of a model on a device that is here, and its speed-up over the float model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwopt.core.artifact import Artifact
from hwopt.core.backend import BackendSpec, Recipe, Runtime
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Tier
from hwopt.core.stage import StageContext, StageResult
from hwopt.errors import StageFailedError
from hwopt.measuring.pairs import LOOK_CONFIDENCE, Call, compare, percentiles
from hwopt.plugins import load_reference, resolve
from hwopt.stages.benchmark.costs import by_family
from hwopt.stages.benchmark.spec import BenchmarkConfig

_PROFILED = 50  # inferences whose operators are timed
SESSIONS = 3  # fresh loads of each side: one lucky memory layout is not a result


def run(ctx: StageContext, inputs: Mapping[str, Artifact], config: BenchmarkConfig) -> StageResult:
    """Pairs against the baseline; a model that is its own baseline gets its latency only."""
    if ctx.hardware is None:
        raise StageFailedError("benchmark needs a device")
    # Real samples: zeros run faster. The training split, because the test split is for the evaluation.
    sample = ctx.data().x_train[: config.batch]
    if len(sample) < config.batch:
        raise StageFailedError(
            f"the batch is {config.batch}, and the training split has {len(sample)} samples",
            fix="lower benchmark.batch",
        )
    same = inputs["model"].digest == inputs["baseline"].digest
    facts, samples = measure(
        inputs["model"].path,
        None if same else inputs["baseline"].path,
        sample=sample,
        config=config,
        hardware=ctx.hardware,
        seed=ctx.seed,
    )
    facts["benchmark"] = {
        **facts["benchmark"],
        "model_digest": inputs["model"].digest,
        "baseline_digest": inputs["baseline"].digest,
    }
    ctx.progress(f"benchmark: p50 {facts['latency_ms']['p50']:.3f} ms at batch {config.batch}")
    table = ctx.workdir / "samples.json"
    table.write_text(pretty_json({"pairs": samples, "latency_ms": facts["latency_ms"]}))
    return StageResult(files={"samples": table}, facts={"tier": Tier.MEASURED.value, **facts})


def measure(
    model: Path,
    baseline: Path | None,
    *,
    sample: Array,
    config: BenchmarkConfig,
    hardware: HardwareProfile,
    seed: int,
) -> tuple[dict[str, Any], list[JSON]]:
    """Latency and speed-up of one model, and every pair behind them.

    Args:
        baseline: the model to compare with; None where ``model`` is the baseline itself.
        sample: the input, of the batch size of ``config``.
    """
    if config.runtime is None:
        raise StageFailedError("benchmark needs a runtime")
    backend: BackendSpec = resolve("backend", config.runtime)
    recipe = Recipe(threads=config.threads)
    loaded: list[Runtime] = []

    def sessions(path: Path) -> list[Call]:
        runtimes = [load_reference(backend.load)(path, recipe, hardware) for _ in range(SESSIONS)]
        loaded.extend(runtimes)
        return [_call(runtime, sample) for runtime in runtimes]

    try:
        candidate = sessions(model)
        speedup: JSON = {"estimate": 1.0, "low": 1.0, "high": 1.0}
        pairs: dict[str, JSON] = {"note": "this model is the baseline, so its speed-up is 1 by definition"}
        samples: list[JSON] = []
        if baseline is not None:
            result = compare(
                sessions(baseline),
                candidate,
                seed=seed,
                half_width=config.half_width,
                budget_seconds=config.budget_seconds,
            )
            speedup = result.interval().to_json()
            pairs = {
                "count": len(result.ratios),
                "clean_share": result.clean_share,
                "degraded": result.degraded,
                "steady": result.steady,
                "half_width_reached": result.reached,
                "confidence": LOOK_CONFIDENCE,
            }
            samples = [
                {"ratio": ratio, "clean": clean, "first": first}
                for ratio, clean, first in zip(result.ratios, result.clean, result.first, strict=True)
            ]
        seconds = percentiles(candidate[0])
        # By the runtime's own clock: it says where the time goes, the pairs say how much there is.
        operators = by_family(loaded[0].profile(_feed(loaded[0], sample), _PROFILED))
    finally:
        for runtime in loaded:
            runtime.close()
    latency = {k: v if k == "count" or v is None else v * 1e3 for k, v in seconds.items()}
    details: dict[str, JSON] = {
        "runtime": config.runtime,
        "recipe": recipe.to_json(),
        "batch": config.batch,
        "pairs": pairs,
    }
    details["operator_microseconds"] = operators
    return {"latency_ms": latency, "speedup": speedup, "benchmark": details}, samples


def _feed(runtime: Runtime, sample: Array) -> dict[str, Array]:
    (name,) = runtime.inputs()
    return {name: sample}


def _call(runtime: Runtime, sample: Array) -> Call:
    feed = _feed(runtime, sample)
    return lambda: runtime.run(feed)
