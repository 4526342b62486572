"""Measure files against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwopt import checkpoints
from hwopt.api.options import AUTO, Options, check_file, feed_of
from hwopt.core.artifact import Kind
from hwopt.core.backend import BackendSpec
from hwopt.core.canonical import JSON
from hwopt.core.dataset import Array
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.measurement import Interval, Tier
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.prepare import probe
from hwopt.engine.single import device, must_be_here, runtime_of
from hwopt.errors import ConfigError, EngineMissingError
from hwopt.latency.causes import Case, causes
from hwopt.latency.measure import Candidate, Inside, Measured, look_inside, measure_all, working
from hwopt.measuring.preflight import preflight
from hwopt.plugins import did_you_mean, resolve, table


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
    for path in paths:
        check_file(path)
    hardware = device(chosen.target)
    names = runtimes_for(chosen, hardware)
    fit_to_measure(chosen)
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


def fit_to_measure(options: Options) -> None:
    """EngineMissingError where ``strict`` is asked and the preflight warns."""
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
