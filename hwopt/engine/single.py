"""One stage by itself, with files in and files out; the same code as in a pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwopt.config import hardware as hardware_profiles
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import digest_of_file
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.host import is_device
from hwopt.core.profile import HOST_CPU, PipelineProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import Progress, StageSpec, timing_of
from hwopt.engine import host as this_host
from hwopt.engine.perform import Task, Worker
from hwopt.engine.prepare import host_profile, limits_of, probe
from hwopt.errors import ConfigError, EngineMissingError, HwoptError
from hwopt.planning.availability import AUTO
from hwopt.plugins import load_reference, resolve
from hwopt.store.atomic import copy_file


def device(name: str) -> HardwareProfile:
    """A hardware profile by name or path; ``host-cpu`` is this machine."""
    if name != HOST_CPU:
        return hardware_profiles.find(name, Path.cwd())
    found = host_profile()
    if found is None:
        raise EngineMissingError(
            "no shipped hardware profile describes this machine's CPU",
            fix="name a device: --target generic-cpu",
        )
    return found


def runtime_of(hardware: HardwareProfile) -> str:
    """The first of a device's runtimes that is here; EngineMissingError with what to install.

    A CPU that this machine is not of the kind of is refused: its times would be another device's.
    """
    if hardware.kind is DeviceKind.CPU:
        must_be_here(hardware)
    reasons = [(name, probe(name)) for name in hardware.runtimes]
    for name, state in reasons:
        if state.available and (state.isa is None or state.isa in hardware.isa):
            return name
    raise EngineMissingError(
        "; ".join(
            f"{name}: {state.reason or f'the device here is {state.device}'}" for name, state in reasons
        )
        or f"{hardware.name} has no runtime",
        fix=next((state.fix for _, state in reasons if state.fix), "choose another --target"),
    )


def must_be_here(hardware: HardwareProfile) -> None:
    """EngineMissingError where this machine is not a CPU of that kind."""
    if not is_device(this_host.detect(), hardware):
        mine = host_profile()
        raise EngineMissingError(
            f"this machine is not a {hardware.name}" + (f" but a {mine.name}" if mine else ""),
            fix="measure with --target host-cpu, or on such a device",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a stage needs besides its settings."""

    profile: PipelineProfile
    hardware: HardwareProfile | None
    progress: Progress


def run_stage(
    stage: str,
    config: Settings,
    job: Job,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    keep: Path | None = None,
    isolated: bool = True,
) -> Mapping[str, Any]:
    """Run ``stage`` on files and put its outputs where ``outputs`` says; the facts of the stage.

    Args:
        keep: a folder that outlives a kill, for stages that resume.
        isolated: in a process of its own; torchrun's helpers are such processes already.
    Raises:
        ConfigError: the device cannot serve the settings, or an output exists as a folder.
    """
    spec: StageSpec = resolve("stage", stage)
    problems = spec.check(config, job.hardware)
    if problems:
        text, fix = problems[0]
        raise ConfigError(text, fix=fix)
    if (spec.times(config) or getattr(config, "estimated", False)) and job.hardware is not None:
        timing: Any = getattr(config, "timing", None)
        bench = job.profile.benchmark
        runtime = None
        if spec.times(config) and timing.runtime is None:
            named = getattr(bench, "runtime", None)
            runtime = runtime_of(job.hardware) if named in {None, AUTO} else named
        config = config.model_copy(update={"timing": timing_of(timing, bench, runtime)})
    for path in outputs.values():
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", fix="give the name of a file")
    wanted = {p: f for p, f in inputs.items() if p in spec.consumes or spec.wants_source(config)}
    artifacts = {port: artifact(path, spec, port) for port, path in wanted.items()}
    root = job.profile.path.resolve().parent
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    worker = Worker(
        threads_of(job), limits_of(job.profile), isolated=isolated, secrets=bool(job.profile.track)
    )
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            stage=stage,
            label=stage,
            title=f"{job.profile.name}-{stage}",
            config=config,
            hardware=job.hardware,
            inputs=artifacts,
            seed=job.profile.seed,
            threads=threads_of(job),
            model=job.profile.model.to_json(),
            data=job.profile.data,
            data_where=job.profile.data_where,
            holdout=job.profile.holdout,
            root=root,
            workdir=Path(folder),
            keep=keep,
            track=job.profile.track if keep is not None else (),
        )
        try:
            result = worker.step(task, job.progress).result
        except HwoptError as error:
            raise error.at(job.profile.model_where if not inputs else None) from None
        finally:
            worker.close()
        for port, path in outputs.items():
            copy_file(result.files[port], path)
    return result.facts


def threads_of(job: Job) -> int:
    """Of training libraries."""
    return job.profile.threads or this_host.usable_cores()


def artifact(path: Path, spec: StageSpec, port: str) -> Artifact:
    """A file as the input of a stage; ConfigError where the stage does not take its kind."""
    if not path.is_file():
        raise ConfigError("no such file", where=str(path))
    kind: Kind = load_reference("hwopt.checkpoints:kind_of")(path)
    wanted = spec.consumes.get(port, frozenset({Kind.CHECKPOINT}))
    if kind not in wanted:
        raise ConfigError(
            f"{spec.name} does not take a {kind.value}" + ("" if port in spec.consumes else f" as {port}"),
            where=str(path),
            fix=f"give a {' or a '.join(sorted(wanted))}",
        )
    return Artifact(kind=kind, digest=digest_of_file(path), bytes=path.stat().st_size, path=path)
