"""Measure files against each other, and the measuring itself against the truth."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx

from hwopt import checkpoints
from hwopt.core.artifact import Kind
from hwopt.core.backend import BackendSpec, Recipe
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import HardwareProfile
from hwopt.core.measurement import Interval, Tier, Verdict
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.data.feeds import feeds
from hwopt.data.npz import read_arrays
from hwopt.engine.pipeline import probe
from hwopt.engine.single import device, runtime_of
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.latency.causes import Case, causes
from hwopt.latency.measure import Candidate, Effort, Measured, look_inside, measure_all, working
from hwopt.latency.reference import small_model
from hwopt.measuring.preflight import preflight
from hwopt.model_check import check_model
from hwopt.plugins import did_you_mean, resolve, table
from hwopt.quantization.onnx_net import signature

Scenario = Literal["single", "batch", "paced"]
AUTO: Final = "auto"
_PARTS: Final = 20  # a planted difference is one part in so many: 5 %
_PLANT_EVERY: Final = 3
_BATCH: Final = 32  # of the scenario batch, unless one is given
_RATE: Final = 10.0  # calls a second of the scenario paced, unless one is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How files are measured."""

    target: str = "host-cpu"
    runtimes: tuple[str, ...] = ()  # none: the first of the device's that is here; auto: all that are here
    scenario: Scenario = "single"
    batch: int | None = None
    rate_hz: float | None = None
    threads: int = 1
    spinning: bool = False
    budget_seconds: float = 6.0
    half_width: float = 0.01
    processes: int = 2
    seed: int = 0
    strict: bool = False  # refuse to measure where the preflight warns

    def __post_init__(self) -> None:
        if self.rate_hz is not None and self.scenario != "paced":
            raise ConfigError("a rate belongs to the scenario paced", fix="add --scenario paced")
        if self.scenario == "paced" and self.batch not in {None, 1}:
            raise ConfigError("the scenario paced asks for one sample at a time", fix="leave out the batch")

    @property
    def samples(self) -> int:
        """Batch of the scenario."""
        return self.batch or (_BATCH if self.scenario == "batch" else 1)

    def effort(self) -> Effort:
        """For the measuring itself."""
        return Effort(
            seed=self.seed,
            half_width=self.half_width,
            budget_seconds=self.budget_seconds,
            processes=self.processes,
            gap_seconds=1 / (self.rate_hz or _RATE) if self.scenario == "paced" else None,
        )


def benchmark(
    models: Sequence[str | Path],
    *,
    inputs: str | Path | Mapping[str, Array] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Measure files on a device that is here; the first is the baseline of the others.

    All files in all runtimes take part in one set of randomized rounds, in fresh processes.

    Args:
        models: ONNX files; checkpoints for the runtimes of torch.
        inputs: arrays by input name, or an npz archive of them; random numbers from the seed if left out.
        options: those of ``Options``; ``runtimes=("auto",)`` measures every runtime of the device's kind that
            is here, and says for each file which is the faster one.
    Returns:
        JSON with one entry a file and runtime: latency, speed-up over the first file in the same runtime,
        what was executed in which precision, memory, load time, and why it is no faster where it is not.
    Raises:
        EngineMissingError: a runtime is not here, or ``strict`` and the machine is not fit to measure on.
    """
    chosen = Options(**options)
    hardware = device(chosen.target)
    names = runtimes_for(chosen, hardware)
    _fit(chosen)
    sides, refused = _sides([Path(m) for m in models], names, hardware, chosen, inputs)
    progress(f"bench: {len(sides)} sides in {chosen.processes} processes")
    result = measure_all(sides, chosen.effort())
    progress(f"bench: {len(result.rounds.blocks)} rounds")
    first = {side.runtime: index for index, side in reversed(list(enumerate(sides)))}
    rows = [_row(result, sides, index, first[side.runtime], chosen) for index, side in enumerate(sides)]
    return {
        "schema_version": 2,
        "target": chosen.target,
        "device": hardware.name,
        "scenario": chosen.scenario,
        "batch": chosen.samples,
        "preflight": result.preflight.to_json(),
        "steal_share": result.steal,
        "results": rows,
        "faster_runtime": _faster_runtimes(result, sides),
        "refused": [{"model": m, "runtime": r, "reason": why} for (m, r), why in refused.items()],
    }


def runtimes_for(options: Options, hardware: HardwareProfile) -> list[str]:
    """The backends that were asked for; all must be here.

    Raises:
        ConfigError: no backend has that name, or it does not serve the device's kind.
        EngineMissingError: it is not here.
    """
    if not options.runtimes:
        return [runtime_of(hardware)]
    if options.runtimes == (AUTO,):
        runtime_of(hardware)  # the device must be this one
        return [n for n in table("backend") if serves(n, hardware) and probe(n).available]
    for name in options.runtimes:
        if name not in table("backend"):
            raise ConfigError(f"unknown runtime {name!r}", fix=did_you_mean(name, table("backend")))
        spec: BackendSpec = resolve("backend", name)
        if hardware.kind not in spec.kinds:
            raise ConfigError(
                f"{name} does not run on a {hardware.kind.value}", fix="choose another --target"
            )
        state = probe(name)
        if not state.available:
            raise EngineMissingError(f"{name}: {state.reason}", fix=state.fix)
    return list(options.runtimes)


def serves(name: str, hardware: HardwareProfile) -> bool:
    """Whether ``auto`` may choose a backend for a device: it deploys ONNX files there."""
    spec: BackendSpec = resolve("backend", name)
    return hardware.kind in spec.kinds and Kind.ONNX in spec.takes


def _fit(options: Options) -> None:
    warnings = preflight().warnings()
    if options.strict and warnings:
        raise EngineMissingError(
            f"this machine is not fit to measure on: {'; '.join(warnings)}",
            fix="mend that, or leave out --strict: the interval then says how sure the result is",
        )


def _sides(
    models: Sequence[Path],
    names: Sequence[str],
    hardware: HardwareProfile,
    options: Options,
    inputs: str | Path | Mapping[str, Array] | None,
) -> tuple[list[Candidate], dict[tuple[str, str], str]]:
    found: list[Candidate] = []
    refused: dict[tuple[str, str], str] = {}
    recipe = Recipe(threads=options.threads, spinning=options.spinning)
    fed = {model: feed_of(model, options.samples, options.seed, inputs) for model in dict.fromkeys(models)}
    for name in names:
        takes = resolve("backend", name).takes
        for model in models:
            kind = checkpoints.kind_of(model)
            if kind not in takes:
                refused[(str(model), name)] = f"{name} does not take a {kind.value}"
                continue
            side = Candidate(model=model, runtime=name, hardware=hardware, feed=fed[model], recipe=recipe)
            if len(names) > 1:  # one runtime of several may refuse; the only one must say so itself
                kept, why = working([side])
                refused |= {(str(model), name): reason for reason in why.values()}
                found += kept
            else:
                found.append(side)
    if not found:
        (where, runtime), reason = next(iter(refused.items()))
        raise ConfigError(
            f"nothing can be measured: {reason}", where=where, fix=f"choose another runtime than {runtime}"
        )
    return found, refused


def feed_of(
    model: Path, batch: int, seed: int, inputs: str | Path | Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """One call's arrays: the first of ``inputs``, or random numbers of the model's own shapes and types."""
    shapes, dtypes = _signature(model)
    if inputs is not None:
        where = None if isinstance(inputs, Mapping) else str(inputs)
        arrays = dict(inputs) if isinstance(inputs, Mapping) else read_arrays(Path(inputs))
        return feeds({n: a[:batch] for n, a in arrays.items()}, shapes, dtypes, where=where)[0]
    rng = np.random.default_rng(seed)
    return {name: _random(rng, name, shape, dtypes[name], batch, model) for name, shape in shapes.items()}


def _signature(model: Path) -> tuple[dict[str, tuple[int | None, ...]], dict[str, np.dtype[Any]]]:
    if not model.is_file():
        raise ConfigError("no such file", where=str(model), fix="give the path of an .onnx file")
    if not checkpoints.is_onnx(model):
        shape = checkpoints.read_recipe(model).sample_shape
        return {"input": (None, *shape)}, {"input": np.dtype(np.float32)}
    check_model(model)
    proto = onnx.load(model, load_external_data=False)
    stored = {i.name for i in proto.graph.initializer}
    shapes, dtypes = signature(proto)
    return {n: s for n, s in shapes.items() if n not in stored}, dtypes


def _random(
    rng: np.random.Generator, name: str, shape: tuple[int | None, ...], dtype: Any, batch: int, model: Path
) -> Array:
    """Never zeros: they run faster. Integers are 0 or 1, which every table of tokens has."""
    if any(size is None for size in shape[1:]):
        raise ConfigError(
            f"the input {name!r} has the shape {list(shape)}: only the first axis may be free",
            where=str(model),
            fix="give real inputs: --inputs FILE.npz",
        )
    first = shape[0] if shape else None
    if first is not None and len(shape) > 1 and first != batch:
        raise ConfigError(
            f"the input {name!r} always holds {first} samples, and the batch is {batch}",
            where=str(model),
            fix=f"measure with --batch {first}, or export the model with a free first axis",
        )
    full = tuple(batch if size is None else size for size in shape)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.random(full).astype(kind)
    if kind.kind in "iub":
        return rng.integers(0, 2, size=full).astype(kind)
    raise ConfigError(f"the input {name!r} holds {kind}", where=str(model), fix="give real inputs: --inputs")


def _row(
    result: Measured, sides: Sequence[Candidate], index: int, base: int, options: Options
) -> dict[str, Any]:
    side = sides[index]
    inside = look_inside(side)
    weighted = [node for node in inside.nodes if node.weighted]
    row: dict[str, Any] = {
        "model": str(side.model),
        "runtime": side.runtime,
        "tier": Tier.MEASURED.value,
        "latency_ms": result.latency_ms(index),
        "speedup": Interval(1.0, 1.0, 1.0).to_json(),
        "against": str(sides[base].model),
        "samples_per_second": options.samples / result.rounds.seconds(index),
        "file_bytes": side.model.stat().st_size,
        "integer_share": sum(n.integer for n in weighted) / len(weighted) if weighted else None,
        "float_operators": [f"{n.name} ({n.op})" for n in weighted if not n.integer],
        "placement": sorted({n.placement for n in inside.nodes if n.placement}),
        "runtime_settings": dict(inside.describe),
        "recipe": side.recipe.to_json(),
        "steady": result.steady,
        "reference": result.reference(index),
        "footprint": dict(inside.footprint),
        "joules": inside.joules,
    }
    if index != base:
        found = result.compare(index, base)
        row["speedup"], row["pairs"] = found.interval().to_json(), found.to_json()
        if found.interval().low <= 1 and checkpoints.is_onnx(side.model):
            case = Case(
                graph=onnx.load(side.model).graph,
                path=side.model,
                model=inside,
                baseline=look_inside(sides[base]),
                call_seconds=result.rounds.seconds(index),
                baseline_seconds=result.rounds.seconds(base),
            )
            row["no_faster_because"] = [cause.to_json() for cause in causes(case)]
    return row


def _faster_runtimes(result: Measured, sides: Sequence[Candidate]) -> list[JSON]:
    """For each file in several runtimes: the faster one, and how it compares with the others."""
    found: list[JSON] = []
    for model in dict.fromkeys(side.model for side in sides):
        mine = [index for index, side in enumerate(sides) if side.model == model]
        if len(mine) < 2:
            continue
        best, table_ = result.fastest(mine)
        ratios: dict[str, JSON] = {sides[i].runtime: ratio for i, ratio in table_.items()}
        found.append({"model": str(model), "runtime": sides[best].runtime, "speed_to_it": ratios})
    return found


def self_test(
    model: str | Path | None = None,
    *,
    comparisons: int = 30,
    margin: float = 0.03,
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """One file as both sides, again and again: how often this machine makes the method say something false.

    Every comparison has fresh processes and sessions. After every third, a difference of 5 % is planted by an
    exact count of inferences, to see that the method is not merely blind.

    Args:
        model: an ONNX file; a small convolution of hwopt's own if left out.
        margin: a comparison fails where the whole interval says slower by more than this.
    Returns:
        JSON with counts of verdicts and of false claims, the bias and the error of the estimates, half-widths.
    """
    chosen = Options(**options)
    hardware = device(chosen.target)
    (runtime, *_) = runtimes_for(chosen, hardware)
    _fit(chosen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "convolution.onnx" if model is None else Path(model)
        if model is None:
            path.write_bytes(small_model())
        side = Candidate(
            model=path,
            runtime=runtime,
            hardware=hardware,
            feed=feed_of(path, chosen.samples, chosen.seed),
            recipe=Recipe(threads=chosen.threads, spinning=chosen.spinning),
        )
        found, planted = [], []
        for index in range(comparisons):
            effort = replace(
                chosen.effort(), seed=chosen.seed + index, margin=margin, reference=False, samples=0
            )
            found.append(measure_all([side, side], effort).compare(1))
            if index % _PLANT_EVERY == 0:  # the same file, and one inference in twenty more
                sides = [replace(side, inferences=_PARTS), replace(side, inferences=_PARTS + 1)]
                planted.append(measure_all(sides, effort).compare(1))
            ratio = found[-1].interval()
            progress(f"{index + 1}/{comparisons}: {ratio.estimate:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    intervals = [one.interval() for one in found]
    verdicts = [one.verdict(margin) for one in found]
    known = [i for i in intervals if np.isfinite([i.low, i.high]).all()]
    errors = [abs(i.estimate - 1) for i in intervals]
    return {
        "schema_version": 1,
        "tier": Tier.MEASURED.value,
        "device": hardware.name,
        "runtime": runtime,
        "comparisons": comparisons,
        "margin": margin,
        "verdicts": {v.value: verdicts.count(v) for v in Verdict},
        "false_claims": sum(i.low > 1 or i.high < 1 for i in known),
        "planted": {
            "truth": _PARTS / (_PARTS + 1),
            "verdicts": {v.value: sum(one.verdict(margin) is v for one in planted) for v in Verdict},
            "estimates": [one.interval().estimate for one in planted],
        },
        "bias": statistics.mean(i.estimate for i in intervals) - 1,
        "error_median": statistics.median(errors),
        "error_p95": float(np.percentile(errors, 95)),
        "half_width_median": statistics.median((i.high - i.low) / 2 for i in known) if known else None,
        "clean_share": statistics.mean(one.clean_share for one in found),
        "preflight": preflight().to_json(),
        "healthy": _healthy(verdicts, known),
    }


def _healthy(verdicts: Sequence[Verdict], known: Sequence[Interval]) -> bool:
    """No false FAIL beyond 1 % (rounded up to one), and intervals that miss the truth no oftener than 5 %.

    The allowance is the binomial's 99 % bound at those rates, so that a sound machine is hardly ever accused.
    """
    missed = sum(i.low > 1 or i.high < 1 for i in known)
    return _plausible(verdicts.count(Verdict.FAIL), len(verdicts), 0.01) and _plausible(
        missed, len(known), 0.05
    )


def _plausible(events: int, n: int, rate: float) -> bool:
    at_least = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(events, n + 1))
    return at_least > 0.01
