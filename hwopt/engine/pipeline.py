"""Plan a profile against this machine, run what is not finished, judge, record."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import hwopt
from hwopt.config import hardware as hardware_profiles
from hwopt.core.artifact import Artifact, Kind
from hwopt.core.backend import Availability, BackendSpec
from hwopt.core.canonical import JSON, canonical_json, digest_of, digest_of_file
from hwopt.core.choices import Choice
from hwopt.core.dataset import Dataset
from hwopt.core.hardware import DeviceKind, HardwareProfile
from hwopt.core.host import describe
from hwopt.core.measurement import Tier, Verdict
from hwopt.core.plan import Plan, Row, Step
from hwopt.core.profile import PipelineProfile
from hwopt.core.settings import Settings
from hwopt.core.stage import Progress, StageContext, StageFunction, StageResult, StageSpec
from hwopt.data.load import fingerprint, load_dataset
from hwopt.engine import host as this_host
from hwopt.engine.judge import choose, judge_row, run_verdict
from hwopt.engine.results import assemble
from hwopt.errors import ConfigError, HwoptError, Problem, ResourceLimitError, StageFailedError
from hwopt.planning.availability import World
from hwopt.planning.planner import plan
from hwopt.plugins import call_factory, load_reference, resolve, source_files, user_modules
from hwopt.store.store import Finished, Store, new_run_id
from hwopt.tracking.ledger import FileLedger
from hwopt.tracking.sink import Sink, SinkSpec

SCHEMA_VERSION: Final = 1
LEDGER: Final = "ledger.jsonl"
_RECORDED_LIBRARIES: Final = ("hwopt", "torch", "onnx", "onnxruntime", "onnxscript", "numpy")


class Fresh(Enum):
    """Which finished steps are done again."""

    NOTHING = "nothing"
    MEASUREMENTS = "measurements"
    EVERYTHING = "everything"


@cache
def probe(name: str) -> Availability:
    """Whether a backend can run here."""
    spec: BackendSpec = resolve("backend", name)
    state: Availability = load_reference(spec.probe)()
    return state


@cache
def host_profile() -> HardwareProfile | None:
    """The shipped profile that this machine's CPU is of the kind of."""
    profiles = [hardware_profiles.shipped(name) for name in hardware_profiles.names()]
    return describe(this_host.detect(), [p for p in profiles if p.kind is DeviceKind.CPU])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A profile with its plan and the data, loaded at most once."""

    profile: PipelineProfile
    plan: Plan
    data: Callable[[], Dataset]
    import_root: Path
    host_profile: HardwareProfile | None

    @property
    def threads(self) -> int:
        """Of training."""
        return self.profile.threads or this_host.usable_cores()


def prepare(profile: PipelineProfile) -> Prepared:
    """Plan a profile against this machine; ConfigError with every problem."""
    profile = replace(profile, threads=profile.threads or this_host.usable_cores())
    root = profile.path.resolve().parent
    data = loader(profile, root)
    try:
        contents = fingerprint(profile.data, data)
    except HwoptError as error:
        raise error.at(profile.data_where) from None
    device = host_profile()
    world = World(
        host=this_host.detect(),
        host_profile=device,
        probe=probe,
        data_fingerprint=contents,
        model_code=code_digest(profile, root),
    )
    return Prepared(
        profile=profile, plan=plan(profile, world), data=data, import_root=root, host_profile=device
    )


def loader(profile: PipelineProfile, root: Path) -> Callable[[], Dataset]:
    """The data of a profile, loaded on the first call; errors carry their place."""

    @cache
    def load() -> Dataset:
        try:
            return load_dataset(
                profile.data, lambda reference, options: call_factory(reference, root, {}, options)
            )
        except HwoptError as error:
            raise error.at(profile.data_where) from None

    return load


def code_digest(profile: PipelineProfile, root: Path) -> str:
    """Digest of the project's files that make up the user's model and optimizers: edited code trains anew."""
    config: Any = profile.source.config
    chosen = [getattr(config, "optimizer", None), *(g.optimizer for g in getattr(config, "groups", ()))]
    classes = [o.name for o in chosen if o is not None and ":" in o.name]
    parts = [_code_of(name.partition(":")[0], root, profile.source.where, optional=True) for name in classes]
    if profile.model.factory is not None:
        parts.append(
            _code_of(profile.model.factory.partition(":")[0], root, profile.model_where, optional=False)
        )
    return "" if not any(parts) else parts[0] if len(parts) == 1 else digest_of(list[JSON](parts))


def _code_of(name: str, root: Path, where: str, *, optional: bool) -> str:
    """Digest of a module's files in the project folder, else of the installed module."""
    files = source_files(name, root)
    if files:
        digest = hashlib.sha256()
        for path in files:
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
        return "sha256:" + digest.hexdigest()
    with user_modules(root):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        if optional and spec is not None:
            return ""  # built in
        raise ConfigError(
            f"cannot import {name!r}",
            where=where,
            fix=f"the module is looked for in {root} and among the installed packages",
        )
    return digest_of_file(Path(spec.origin))


def finished_keys(plan: Plan, store: Store) -> set[str]:
    """Keys of the steps that are finished, their inputs finished too and their files whole."""
    done: dict[str, Finished] = {}
    for step in plan.steps:
        inputs = input_digests(step, done)
        found = None if inputs is None else store.finished(step.key, inputs)
        if found is not None:
            done[step.key] = found
    return set(done)


def input_digests(step: Step, done: Mapping[str, Finished]) -> dict[str, str] | None:
    """Digest of every input; None where one is not there yet."""
    if any(source.step not in done for source in step.inputs.values()):
        return None
    return {port: done[source.step].artifacts[source.port].digest for port, source in step.inputs.items()}


@dataclass(slots=True, kw_only=True)
class _Run:
    """The state of one execution."""

    prepared: Prepared
    store: Store
    progress: Progress
    fresh: Fresh
    done: dict[str, Finished]
    failures: dict[str, Problem]
    steps: list[dict[str, JSON]]

    def execute(self) -> None:
        """Every step in order; a failed one takes those that depend on it along, and no other."""
        plan = self.prepared.plan
        total = len(plan.steps)
        for index, step in enumerate(plan.steps, 1):
            entry: dict[str, JSON] = {"key": step.key, "stage": step.stage, "label": step.label}
            broken = [s.step for s in step.inputs.values() if s.step in self.failures]
            inputs = input_digests(step, self.done)
            cached = None if inputs is None or self.again(step) else self.store.finished(step.key, inputs)
            if broken:
                self.failures[step.key] = self.failures[broken[0]]
                entry |= {"status": "skipped", "reason": self.failures[step.key].problem, "seconds": 0.0}
            elif cached is not None:
                self.done[step.key] = cached
                entry |= {"status": "cached", "reason": None, "seconds": cached.seconds}
            else:
                self.progress(f"[{index}/{total}] {step.label}")
                started = time.monotonic()
                entry |= self.attempt(step, started)
            self.steps.append(entry)

    def float_training(self) -> Mapping[str, Any]:
        """Facts of the training of the float model; empty where it was not trained here."""
        first = [s for s in self.prepared.plan.steps if s.stage == self.prepared.profile.source.stage]
        found = [self.done[s.key].facts for s in first if s.key in self.done]
        return found[0] if found and "history" in found[0] else {}

    def again(self, step: Step) -> bool:
        """Whether the user asked for this step to be done again."""
        measured = resolve("stage", step.stage).measured
        return self.fresh is Fresh.EVERYTHING or (self.fresh is Fresh.MEASUREMENTS and measured)

    def attempt(self, step: Step, started: float) -> dict[str, JSON]:
        """Run a step; what one candidate does wrong is a failed row, and the others go on."""
        try:
            self.done[step.key] = self.run_step(step, started)
        except ResourceLimitError:
            raise  # a full disk fails every candidate
        except HwoptError as error:
            first = error.problems[0]
            if not step.inputs and not isinstance(error, StageFailedError):
                raise error.at(self.prepared.profile.model_where) from None
            problem = Problem(
                problem=f"{step.stage}: {first.problem}", where=first.where or step.where, fix=first.fix
            )
            self.failures[step.key] = problem
            self.progress(f"failed: {problem.problem}" + (f" → {problem.fix}" if problem.fix else ""))
            return {
                "status": "failed",
                "reason": problem.problem,
                "where": problem.where,
                "fix": problem.fix,
                "seconds": time.monotonic() - started,
            }
        return {"status": "ok", "reason": None, "seconds": time.monotonic() - started}

    def run_step(self, step: Step, started: float) -> Finished:
        spec: StageSpec = resolve("stage", step.stage)
        function: StageFunction = load_reference(spec.run)
        inputs = {port: self.done[source.step].artifacts[source.port] for port, source in step.inputs.items()}
        keep = self.store.partial(step.key, fresh=self.again(step))
        profile = self.prepared.profile
        title = f"{profile.name}-{step.stage}-{step.key[-8:]}"
        book = opened(keep / LEDGER, profile.track, title, step.config, self.progress)
        with self.store.workdir() as workdir, book as ledger:
            context = StageContext(
                workdir=workdir,
                seed=self.prepared.profile.seed,
                threads=self.prepared.threads,
                hardware=step.hardware,
                model=self.prepared.profile.model.to_json(),
                data=self.prepared.data,
                progress=lambda text: self.progress("  " + text),
                source_facts=self.done[step.inputs["source"].step].facts if "source" in step.inputs else {},
                import_root=self.prepared.import_root,
                keep=keep,
                ledger=ledger,
            )
            result = call_stage(function, context, inputs, step)
            artifacts = {
                port: self.store.put(result.files[port], kind) for port, kind in spec.produces.items()
            }
            for port, artifact in artifacts.items():
                ledger.artifact(artifact.path, port)
            if (keep / LEDGER).stat().st_size:
                artifacts["ledger"] = self.store.put(keep / LEDGER, Kind.TABLE)
        seconds = time.monotonic() - started
        digests = {port: artifact.digest for port, artifact in inputs.items()}
        self.store.commit(step.key, step.label, artifacts, result.facts, seconds, digests)
        self.store.settle(step.key)
        return Finished(artifacts=artifacts, facts=result.facts, seconds=seconds)


@contextmanager
def opened(
    path: Path, track: Sequence[Choice], run: str, config: Settings, progress: Progress
) -> Iterator[FileLedger]:
    """A ledger, with trackers where the stage trains; they are told how it ended."""
    ledger = FileLedger(path, make_sinks(track if hasattr(config, "optimizer") else (), progress), progress)
    ledger.start(run, config.to_json())
    status = "failed"
    try:
        yield ledger
        status = "ok"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        ledger.close(status)


def make_sinks(chosen: Sequence[Choice], progress: Progress) -> dict[str, Sink]:
    """The trackers of a profile; one whose library is missing is left out, and that is said."""
    sinks: dict[str, Sink] = {}
    for choice in chosen:
        name = str(choice.name)
        spec: SinkSpec = resolve("tracker", name)
        settings = spec.settings.model_validate_json(canonical_json(dict(choice.options)))
        try:
            sinks[name] = load_reference(spec.make)(settings)
        except ImportError as error:
            progress(f"tracker {name}: left out, {error}; pip install 'hwopt[{spec.extra}]'")
        except Exception as error:  # a tracker must not cost a run
            progress(f"tracker {name}: left out, {type(error).__name__}: {error}")
    return sinks


def call_stage(
    function: StageFunction, context: StageContext, inputs: Mapping[str, Artifact], step: Step
) -> StageResult:
    """Run a stage with the thread count of the profile; the unforeseen is a failed step."""
    load_reference("torch:set_num_threads")(context.threads)
    with foreign_code(context.import_root, str(context.workdir)):
        return function(context, inputs, step.config)


@contextmanager
def foreign_code(root: Path | None, where: str | None = None) -> Iterator[None]:
    """The boundary to libraries and to the user's modules: what they raise becomes a failed stage.

    One broken candidate must not end the run, and nobody's stack trace is a message.
    """
    try:
        with user_modules(root):
            yield
    except (HwoptError, KeyboardInterrupt, MemoryError, GeneratorExit):
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceLimitError(
                "the disk is full", where=where, fix="free space and run again"
            ) from error
        raise StageFailedError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ""
        raise StageFailedError(f"{type(error).__name__}: {text}") from error


def run(
    profile: PipelineProfile,
    store: Store,
    progress: Progress,
    *,
    fresh: Fresh = Fresh.NOTHING,
    lock_timeout: float = 0.0,
) -> tuple[str, dict[str, Any]]:
    """Execute a profile; the run's id and its record, which is also saved."""
    started = datetime.now(UTC)
    with store.locked(lock_timeout):
        prepared = prepare(profile)
        state = _Run(
            prepared=prepared, store=store, progress=progress, fresh=fresh, done={}, failures={}, steps=[]
        )
        state.execute()
        run_id = new_run_id(started)
        record = make_record(run_id, started, prepared, state)
        store.save_record(run_id, record)
    return run_id, record


def make_record(run_id: str, started: datetime, prepared: Prepared, state: _Run) -> dict[str, Any]:
    """The document that ``--json`` prints and that reports are rendered from."""
    profile, plan = prepared.profile, prepared.plan
    targets = {t.name: t.hardware or prepared.host_profile for t in profile.targets}
    results: list[dict[str, Any]] = [_result(row, targets[row.target], state) for row in plan.rows]
    requirements: list[JSON] = []
    for result in results:
        verdict, judged = judge_row(profile.requirements, result)
        result["verdict"] = verdict.value if verdict else None
        result["details"]["requirements"] = [j.to_json() for j in judged]
    for requirement in profile.requirements:
        requirements.append(str(requirement))
    choices: dict[str, JSON] = {}
    for target in targets:
        # Goals of single candidates say nothing about which of all to ship.
        mine = [r for r in results if r["target"] == target]
        best = choose(mine) if profile.requirements else None
        choices[target] = best["candidate"] if best else None
    verdict = run_verdict(profile.requirements, results)
    if any(r["status"] == "failed" for r in results) and verdict is Verdict.PASS and not profile.requirements:
        verdict = Verdict.INCONCLUSIVE
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run_id,
        "name": profile.name,
        "verdict": verdict.value,
        "choice": choices,
        "results": list[JSON](results),
        "requirements": requirements,
        "not_checked": _not_checked(results),
        "steps": list[JSON](state.steps),
        "training": dict(state.float_training()) or None,
        "started": started.isoformat(timespec="seconds"),
        "seconds": (datetime.now(UTC) - started).total_seconds(),
        "seed": profile.seed,
        "threads": prepared.threads,
        "profile": {"path": str(profile.path), "text": profile.text, "digest": digest_of(profile.text)},
        "environment": environment(),
    }


def _result(row: Row, hardware: HardwareProfile | None, state: _Run) -> dict[str, Any]:
    timed = (state.done[key].facts.get("benchmark", {}) for key in row.steps if key in state.done)
    counted = row.counted(next((part["runtime"] for part in timed if part), None))
    facts = [state.done[key].facts for key in counted if key in state.done]
    failure = next((state.failures[key] for key in counted if key in state.failures), None)
    result: dict[str, Any] = assemble(row, facts, failure, hardware)
    result["details"]["steps"] = list(row.steps)
    result["details"]["training_cost"] = training_cost(
        [part.get("training") for part in facts], state.float_training().get("training")
    )
    return result


def training_cost(trainings: list[Any], whole: Any) -> dict[str, JSON] | None:
    """CPU time that a candidate's own steps trained, and in trainings of the float model; None for none."""
    spent = [float(t["cpu_seconds"]) for t in trainings if t]
    if not spent:
        return None
    once = float(whole["cpu_seconds"]) if whole else None
    return {
        "cpu_seconds": sum(spent),
        "of_float": sum(spent) / once if once else None,
        "tier": Tier.MEASURED.value,
    }


def _not_checked(results: list[dict[str, Any]]) -> list[JSON]:
    """What a reader might take for granted and was not done, each with its reason."""
    found: list[JSON] = []
    for result in results:
        place = f"{result['candidate']} on {result['target']}"
        if result["status"] != "ok":
            found.append(f"{place}: {result['reason']}")
            continue
        for name, reason in result["details"]["missing"].items():
            found.append(f"{name} of {place}: {reason}")
    return found


def environment() -> dict[str, Any]:
    """Versions and machine, without names of users, hosts or paths."""
    versions: dict[str, JSON] = {}
    for name in _RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = hwopt.__version__ if name == "hwopt" else None
    device = host_profile()
    return {
        "python": platform.python_version(),
        "libraries": versions,
        "host": this_host.detect().to_json(),
        "host_profile": device.name if device else None,
    }
