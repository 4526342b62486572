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
from hwopt.core.dataset import Array, tokens_of
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Interval, Tier, Verdict
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.data.feeds import feeds
from hwopt.data.npz import read_arrays
from hwopt.engine.pipeline import probe
from hwopt.engine.single import device, must_be_here, runtime_of
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.latency.causes import Case, causes
from hwopt.latency.measure import Candidate, Effort, Inside, Measured, look_inside, measure_all, working
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
        if isinstance(self.runtimes, str):
            object.__setattr__(self, "runtimes", (self.runtimes,))
        if AUTO in self.runtimes and len(self.runtimes) > 1:
            raise ConfigError("auto means every runtime that is here", fix="name no other beside it")
        if self.processes < 1 or (self.batch is not None and self.batch < 1):
            raise ConfigError("processes and batch are at least 1")
        if self.rate_hz is not None and self.scenario != "paced":
            raise ConfigError("a rate belongs to the scenario paced", fix="add --scenario paced")
        if self.scenario == "paced" and self.batch not in {None, 1}:
            raise ConfigError("the scenario paced asks for one sample at a time", fix="leave out the batch")

    @property
    def samples(self) -> int:
        """Batch of the scenario, for files that take any."""
        return self.batch or (_BATCH if self.scenario == "batch" else 1)

    def recipe(self) -> Recipe:
        """How every file is executed."""
        return Recipe(threads=self.threads, spinning=self.spinning)

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
    paths = [Path(model) for model in dict.fromkeys(map(str, models))]
    if not paths:
        raise ConfigError("there is nothing to measure", fix="give the path of an .onnx file")
    hardware = device(chosen.target)
    names = runtimes_for(chosen, hardware)
    _fit(chosen)
    sides, refused = _sides(paths, names, hardware, chosen, inputs)
    bases = [_base(sides, index) for index in range(len(sides))]
    firsts = {side.model: index for index, side in reversed(list(enumerate(sides)))}
    # Each with its baseline, and each runtime of a file with the first one.
    pairs = {(index, base) for index, base in enumerate(bases)}
    pairs |= {(index, firsts[side.model]) for index, side in enumerate(sides)}
    progress(f"bench: {len(sides)} sides in {chosen.processes} processes")
    result = measure_all(sides, chosen.effort(), [(a, b) for a, b in sorted(pairs) if a != b])
    progress(f"bench: {len(result.rounds.blocks)} rounds")
    insides = _Insides(sides)
    rows = [_row(result, sides, index, bases[index], insides) for index in range(len(sides))]
    return {
        "schema_version": 2,
        "target": chosen.target,
        "device": hardware.name,
        "scenario": chosen.scenario,
        "preflight": result.preflight.to_json(),
        "steal_share": result.steal,
        "gpu": [state.to_json() for state in result.gpu],
        "results": rows,
        "faster_runtime": _faster_runtimes(result, sides),
        "refused": [{"model": m, "runtime": r, "reason": why} for (m, r), why in refused.items()],
    }


def _base(sides: Sequence[Candidate], index: int) -> int:
    """What a side is compared with: the first file in its runtime; in the first one where it is not there."""
    first = sides[0].model
    mine = (i for i, side in enumerate(sides) if side.model == first and side.runtime == sides[index].runtime)
    return next(mine, 0)


class _Insides:
    """What runtimes say of each side; asked once."""

    def __init__(self, sides: Sequence[Candidate]) -> None:
        self._sides, self._seen = sides, dict[int, Inside]()

    def __getitem__(self, index: int) -> Inside:
        if index not in self._seen:
            self._seen[index] = look_inside(self._sides[index])
        return self._seen[index]


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
    names = list(dict.fromkeys(options.runtimes))
    for name in names:
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
        if state.isa is not None and state.isa not in hardware.isa:
            raise EngineMissingError(
                f"the device here is {state.device} ({state.isa}), not a {hardware.name}",
                fix="name the device that is here as the target",
            )
    if hardware.kind is DeviceKind.CPU:
        must_be_here(hardware)
    return names


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
    recipe = options.recipe()
    fed = {model: feed_of(model, options, inputs) for model in models}
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
    model: Path, options: Options, inputs: str | Path | Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """One call's arrays: the first rows of ``inputs``, or random numbers of the model's own shapes and types.

    A model whose first axis is fixed gets that batch, unless another was asked for.

    Raises:
        ConfigError: the batch is not the model's, or there are fewer rows than it takes.
    """
    shapes, dtypes = _signature(model)
    own = next((shape[0] for shape in shapes.values() if len(shape) > 1 and shape[0] is not None), None)
    batch = options.batch or own or options.samples
    if own is not None and own != batch:
        raise ConfigError(
            f"the model always takes {own} samples, and the batch is {batch}",
            where=str(model),
            fix=f"measure with --batch {own}, or export the model with a free first axis",
        )
    if inputs is None:
        rng = np.random.default_rng(options.seed)
        return {name: _random(rng, name, shape, dtypes[name], batch, model) for name, shape in shapes.items()}
    where = None if isinstance(inputs, Mapping) else str(inputs)
    arrays = dict(inputs) if isinstance(inputs, Mapping) else read_arrays(Path(inputs))
    short = {
        n: len(a)
        for n, a in arrays.items()
        if n in shapes and np.ndim(a) == len(shapes[n]) and len(a) < batch
    }
    if short:
        name, rows = next(iter(short.items()))
        raise ConfigError(
            f"the batch is {batch}, and {name} has {rows} rows",
            where=where,
            fix=f"measure with --batch {rows}",
        )
    fixed = {n: (batch, *shape[1:]) if shape and shape[0] is None else shape for n, shape in shapes.items()}
    return feeds(arrays, fixed, dtypes, where=where)[0]


def _signature(model: Path) -> tuple[dict[str, tuple[int | None, ...]], dict[str, np.dtype[Any]]]:
    if not model.is_file():
        raise ConfigError("no such file", where=str(model), fix="give the path of an .onnx file")
    if not checkpoints.is_onnx(model):
        shape = checkpoints.read_recipe(model).sample_shape
        dtype = np.int64 if tokens_of(shape) else np.float32
        return {"input": (None, *shape)}, {"input": np.dtype(dtype)}
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
    full = tuple(batch if size is None else size for size in shape)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.random(full).astype(kind)
    if kind.kind in "iub":
        return rng.integers(0, 2, size=full).astype(kind)
    raise ConfigError(f"the input {name!r} holds {kind}", where=str(model), fix="give real inputs: --inputs")


def _row(
    result: Measured, sides: Sequence[Candidate], index: int, base: int, insides: _Insides
) -> dict[str, Any]:
    side, inside = sides[index], insides[index]
    weighted = [node for node in inside.nodes if node.weighted]
    samples = max((len(value) for value in side.feed.values() if np.ndim(value)), default=1)
    row: dict[str, Any] = {
        "model": str(side.model),
        "runtime": side.runtime,
        "tier": Tier.MEASURED.value,
        "batch": samples,
        "latency_ms": result.latency_ms(index),
        "speedup": Interval(1.0, 1.0, 1.0).to_json(),
        "against": {"model": str(sides[base].model), "runtime": sides[base].runtime},
        "samples_per_second": samples / result.rounds.seconds(index),
        "file_bytes": side.model.stat().st_size,
        "integer_share": sum(n.integer for n in weighted) / len(weighted) if weighted else None,
        "float_operators": [f"{n.name} ({n.op})" for n in weighted if not n.integer],
        "placement": sorted({n.placement for n in inside.nodes if n.placement}),
        "runtime_settings": dict(inside.describe),
        "recipe": side.recipe.to_json(),
        "steady": result.steady[index],
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
                baseline=insides[base],
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
            feed=feed_of(path, chosen),
            recipe=chosen.recipe(),
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
    truth = _PARTS / (_PARTS + 1)
    off = [one.interval() for one in planted]
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
            "truth": truth,
            "missed": sum(not i.low <= truth <= i.high for i in off),
            "verdicts": {v.value: sum(one.verdict(margin) is v for one in planted) for v in Verdict},
            "estimates": [one.interval().estimate for one in planted],
        },
        "bias": statistics.mean(i.estimate for i in intervals) - 1,
        "error_median": statistics.median(errors),
        "error_p95": float(np.percentile(errors, 95)),
        "half_width_median": statistics.median((i.high - i.low) / 2 for i in known) if known else None,
        "clean_share": statistics.mean(one.clean_share for one in found),
        "preflight": preflight().to_json(),
        "healthy": _healthy(verdicts, [*_shifted(known, 1.0), *_shifted(off, truth)])
        and _plausible(sum(one.verdict(margin) is Verdict.PASS for one in planted), len(planted), 0.01),
    }


def _shifted(intervals: Sequence[Interval], truth: float) -> list[Interval]:
    """As if the truth were 1."""
    return [Interval(i.estimate / truth, i.low / truth, i.high / truth) for i in intervals]


def _healthy(verdicts: Sequence[Verdict], known: Sequence[Interval]) -> bool:
    """Something is known, hardly a false FAIL, and intervals that miss the truth no oftener than 5 %.

    The allowance is the binomial's 99 % bound at 1 and 5 %, so that a sound machine is hardly ever accused.
    """
    missed = sum(i.low > 1 or i.high < 1 for i in known)
    false = verdicts.count(Verdict.FAIL)
    return bool(known) and _plausible(false, len(verdicts), 0.01) and _plausible(missed, len(known), 0.05)


def _plausible(events: int, n: int, rate: float) -> bool:
    at_least = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(events, n + 1))
    return at_least > 0.01
