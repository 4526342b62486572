"""One stage by itself, with files in and files out; the same code as in a pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwopt.config import hardware as hardware_profiles
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import digest_of_file
from hwopt.core.dataset import Dataset
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.host import is_device
from hwopt.core.ledger import Ledger, NoLedger
from hwopt.core.plan import Step
from hwopt.core.profile import HOST_CPU, PipelineProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import Progress, StageContext, StageResult, StageSpec, timing_of
from hwopt.engine import host as this_host
from hwopt.engine.pipeline import LEDGER, call_stage, host_profile, loader, opened, probe
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

    @property
    def data(self) -> Callable[[], Dataset]:
        """The profile's data, loaded on the first call."""
        return loader(self.profile, self.profile.path.resolve().parent)


def run_stage(
    stage: str,
    config: Settings,
    job: Job,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    keep: Path | None = None,
) -> Mapping[str, Any]:
    """Run ``stage`` on files and put its outputs where ``outputs`` says; the facts of the stage.

    Args:
        keep: a folder that outlives a kill, for stages that resume.
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
    step = Step(key="", stage=stage, label=stage, config=config, hardware=job.hardware, inputs={}, where=None)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, _ledger(job, stage, config, keep) as ledger:
        context = StageContext(
            workdir=Path(folder),
            seed=job.profile.seed,
            threads=job.profile.threads or this_host.usable_cores(),
            hardware=job.hardware,
            model=job.profile.model.to_json(),
            data=job.data,
            progress=job.progress,
            import_root=job.profile.path.resolve().parent,
            keep=keep,
            ledger=ledger,
        )
        try:
            result: StageResult = call_stage(load_reference(spec.run), context, artifacts, step)
        except HwoptError as error:
            raise error.at(job.profile.model_where if not inputs else None) from None
        for port, path in outputs.items():
            copy_file(result.files[port], path)
    return result.facts


@contextmanager
def _ledger(job: Job, stage: str, config: Settings, keep: Path | None) -> Iterator[Ledger]:
    """A file beside what a long stage resumes from, with the profile's trackers."""
    if keep is None:
        yield NoLedger()
        return
    with opened(
        keep / LEDGER, job.profile.track, f"{job.profile.name}-{stage}", config, job.progress
    ) as ledger:
        yield ledger


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
