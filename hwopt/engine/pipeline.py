"""Run a profile: what is not finished is done, in worker processes; then judge and record."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from hwopt.core.artifact import Kind
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.crossings import crossing
from hwopt.core.plan import Step
from hwopt.core.profile import PipelineProfile
from hwopt.core.stage import Progress, StageSpec
from hwopt.engine.perform import Done, Task, Worker
from hwopt.engine.prepare import Prepared, limits_of, prepare
from hwopt.engine.record import Executed, make_record, rollback_state
from hwopt.engine.steps import after, before, input_digests, named
from hwopt.errors import ConfigError, HwoptError, Problem, ResourceLimitError, StageFailedError
from hwopt.plugins import resolve
from hwopt.store.store import Finished, Store

_HUBS: Final = {"huggingface", "torchvision"}  # data that may need the user's credentials


class Fresh(Enum):
    """Which finished steps are done again."""

    NOTHING = "nothing"
    MEASUREMENTS = "measurements"
    EVERYTHING = "everything"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How much of a plan is done, and how."""

    fresh: Fresh = Fresh.NOTHING
    start: str | None = None  # this step and all that follow from it are done again
    until: str | None = None  # nothing beyond this step is done
    seconds: float | None = None  # when they are over, the run ends; finished steps are kept
    jobs: int = 1  # steps at a time; measured ones always run alone
    isolated: bool = True  # stages in worker processes


@dataclass(slots=True, kw_only=True)
class _Run:
    """The state of one execution."""

    prepared: Prepared
    store: Store
    progress: Progress
    wish: Wish
    log: Callable[..., None]
    only: Collection[str] | None = None  # keys of the steps to do, with those before them; None: all
    worker: Worker | None = None  # one that outlives this execution; None: own ones
    done: dict[str, Finished] = field(default_factory=dict)
    failures: dict[str, Problem] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)  # steps that the user wanted left out: why
    entries: dict[str, dict[str, JSON]] = field(default_factory=dict)
    fatal: HwoptError | None = None  # what would fail every candidate
    _again: set[str] = field(default_factory=set)
    _wanted: set[str] = field(default_factory=set)
    _end: float | None = None
    _stopping: bool = False
    _workers: list[Worker] = field(default_factory=list)
    _mine: threading.local = field(default_factory=threading.local)

    def execute(self) -> None:
        """Every step that is wanted; a failed one takes those that depend on it along, and no other."""
        plan, wish = self.prepared.plan, self.wish
        self._again = after(plan, named(plan, wish.start)) if wish.start else set()
        last = [step for step in plan.steps if self.only is None or step.key in self.only]
        self._wanted = before(plan, named(plan, wish.until) if wish.until else last)
        self._end = None if wish.seconds is None else time.monotonic() + wish.seconds
        if not wish.isolated and (wish.jobs > 1 or wish.seconds is not None):
            raise ConfigError(
                "steps in this process can be neither stopped nor run beside each other",
                fix="leave out --jobs and --time-budget, or --no-isolation",
            )
        alarm = None if wish.seconds is None else threading.Timer(wish.seconds, self._stop_workers)
        if alarm is not None:
            alarm.daemon = True
            alarm.start()
        try:
            self._loop()
        finally:
            if alarm is not None:
                alarm.cancel()
            for worker in self._workers:
                if worker is not self.worker:
                    worker.close()

    def _loop(self) -> None:
        waiting = {step.key: step for step in self.prepared.plan.steps}
        running: dict[Future[None], Step] = {}
        with ThreadPoolExecutor(self.wish.jobs) as pool:
            try:
                while waiting or running:
                    settled = False
                    for step in self._startable(list(waiting.values()), list(running.values())):
                        del waiting[step.key]
                        if self._settled(step):
                            settled = True  # others may be startable now
                        else:
                            running[pool.submit(self._attempt, step)] = step
                    if running and not settled:
                        finished, _ = wait(running, return_when=FIRST_COMPLETED)
                        for future in finished:
                            del running[future]
                            future.result()
            except BaseException:
                self._stopping = True
                for worker in list(self._workers):
                    worker.end()  # politely: it keeps what it resumes from
                raise

    def _startable(self, waiting: Sequence[Step], running: Sequence[Step]) -> list[Step]:
        """The next steps: all whose inputs are decided, but a measured one only where nothing else runs."""
        free = self.wish.jobs - len(running)
        found: list[Step] = []
        if any(self._measured(step) for step in running):
            return found
        decided = self.entries.keys()
        for step in waiting:
            if not all(source.step in decided for source in step.inputs.values()):
                continue
            if self._cheap(step):
                return [step]  # it may make others startable
            if len(found) < free and not self._measured(step):
                found.append(step)
            elif self._measured(step) and not running and not found:
                return [step]
        return found

    def _cheap(self, step: Step) -> bool:
        """Whether nothing has to be worked for a step."""
        return (
            step.key not in self._wanted
            or any(s.step in self.failures or s.step in self.stopped for s in step.inputs.values())
            or self._over()
            or self._cached(step) is not None
        )

    def _measured(self, step: Step) -> bool:
        spec: StageSpec = resolve("stage", step.stage)
        return spec.measured or spec.times(step.config)

    def _over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def _cached(self, step: Step) -> Finished | None:
        inputs = input_digests(step, self.done)
        if inputs is None or self.again(step):
            return None
        return self.store.finished(step.key, inputs)

    def again(self, step: Step) -> bool:
        """Whether the user asked for this step to be done again."""
        measured = resolve("stage", step.stage).measured
        return (
            step.key in self._again
            or self.wish.fresh is Fresh.EVERYTHING
            or (self.wish.fresh is Fresh.MEASUREMENTS and measured)
        )

    def _settled(self, step: Step) -> bool:
        """Decide a step without work, where that can be; otherwise it has to run."""
        broken = [s.step for s in step.inputs.values() if s.step in self.failures]
        left = [s.step for s in step.inputs.values() if s.step in self.stopped]
        if broken:
            self.failures[step.key] = self.failures[broken[0]]
            self._enter(step, "skipped", reason=self.failures[step.key].problem)
        elif step.key not in self._wanted:
            self._leave(step, f"the run ended at --until {self.wish.until}")
        elif left:
            self._leave(step, self.stopped[left[0]])
        elif (cached := self._cached(step)) is not None:
            self.done[step.key] = cached
            self._enter(step, "cached", seconds=cached.seconds)
        elif self._over():
            self._leave(step, "the time budget of the run was over")
        else:
            return False
        return True

    def _leave(self, step: Step, why: str) -> None:
        self.stopped[step.key] = why
        self._enter(step, "stopped", reason=why)

    def _enter(
        self, step: Step, status: str, *, reason: str | None = None, seconds: float = 0.0, **more: JSON
    ) -> None:
        finished = self.done.get(step.key)
        entry: dict[str, JSON] = {
            "key": step.key,
            "stage": step.stage,
            "label": step.label,
            "status": status,
            "reason": reason,
            "seconds": seconds,
            "outputs": {
                port: {"kind": a.kind.value, "digest": a.digest, "bytes": a.bytes}
                for port, a in (finished.artifacts.items() if finished else ())
            },
            **more,
        }
        self.entries[step.key] = entry
        self.log("step", **{name: entry[name] for name in ("key", "label", "status", "reason", "seconds")})

    def _attempt(self, step: Step) -> None:
        """Run a step; what one candidate does wrong is a failed row, and the others go on."""
        started = time.monotonic()
        number = [s.key for s in self.prepared.plan.steps].index(step.key) + 1
        self.progress(f"[{number}/{len(self.prepared.plan.steps)}] {step.label}{self._left()}")
        self.log("step begins", key=step.key, label=step.label)
        try:
            before = self.store.step_entry(step.key)
            self.done[step.key] = self._run_step(step, started)
        except HwoptError as error:
            seconds = time.monotonic() - started
            if self._stopping:
                return  # it was ended, and did not fail
            if self._over():
                self._leave(step, "the time budget of the run was over")
                return
            if isinstance(error, ResourceLimitError):
                raise  # a full disk fails every candidate
            first = error.problems[0]
            if not step.inputs and not isinstance(error, StageFailedError):
                self.fatal = error.at(self.prepared.profile.model_where)
            problem = Problem(
                problem=f"{step.stage}: {first.problem}", where=first.where or step.where, fix=first.fix
            )
            self.failures[step.key] = problem
            self.progress(f"failed: {problem.problem}" + (f" → {problem.fix}" if problem.fix else ""))
            where, fix = problem.where, problem.fix
            self._enter(step, "failed", reason=problem.problem, seconds=seconds, where=where, fix=fix)
        else:
            self._enter(
                step, "ok", seconds=time.monotonic() - started, again=_again(before, self.done[step.key])
            )

    def _left(self) -> str:
        """Time that the steps to do will take, where all of them were done before."""
        expected = 0.0
        for step in self.prepared.plan.steps:
            if step.key in self.entries or step.key not in self._wanted:
                continue
            entry = self.store.step_entry(step.key)
            if entry is None:
                return ""
            expected += float(entry.get("seconds", 0.0))
        return f", about {expected:.0f} s left" if expected >= 2 else ""

    def _worker(self) -> Worker:
        """The one of this thread."""
        found: Worker | None = getattr(self._mine, "worker", None)
        if found is None:
            found = self._mine.worker = self.worker or new_worker(self.prepared, isolated=self.wish.isolated)
            self._workers.append(found)
        return found

    def _stop_workers(self) -> None:
        for worker in list(self._workers):
            worker.stop()

    def _run_step(self, step: Step, started: float) -> Finished:
        spec: StageSpec = resolve("stage", step.stage)
        inputs = {port: self.done[source.step].artifacts[source.port] for port, source in step.inputs.items()}
        profile = self.prepared.profile
        keep = self.store.partial(step.key, fresh=self.again(step))
        crossing("step.begun")
        with self.store.workdir() as workdir:
            task = Task(
                stage=step.stage,
                label=step.label,
                title=f"{profile.name}-{step.stage}-{step.key[-8:]}",
                config=step.config,
                hardware=step.hardware,
                inputs=inputs,
                seed=profile.seed,
                threads=step.threads,
                model=step.model.to_json(),
                data=profile.data,
                data_where=profile.data_where,
                holdout=profile.holdout,
                root=self.prepared.import_root,
                workdir=workdir.resolve(),
                keep=keep.resolve(),
                track=profile.track,
                source_facts=self.done[step.inputs["source"].step].facts if "source" in step.inputs else {},
            )
            made: Done = self._worker().step(task, lambda text: self.progress("  " + text))
            crossing("step.worked")
            artifacts = {
                port: self.store.put(made.result.files[port], kind) for port, kind in spec.produces.items()
            }
            if made.ledger is not None:
                artifacts["ledger"] = self.store.put(made.ledger, Kind.TABLE)
        seconds = time.monotonic() - started
        digests = {port: artifact.digest for port, artifact in inputs.items()}
        self.store.commit(step.key, step.label, artifacts, made.result.facts, seconds, digests, step.basis)
        self.store.settle(step.key)
        return Finished(artifacts=artifacts, facts=made.result.facts, seconds=seconds)


def _again(before: Mapping[str, Any] | None, now: Finished) -> str | None:
    """Whether a step that was made again gave the same files; None for the first time."""
    if before is None:
        return None
    old = {port: o["digest"] for port, o in before.get("outputs", {}).items() if port != "ledger"}
    new = {port: a.digest for port, a in now.artifacts.items() if port != "ledger"}
    return "same" if old == new else "different"


def new_worker(prepared: Prepared, *, isolated: bool = True) -> Worker:
    """A worker for the steps of a plan."""
    profile = prepared.profile
    secrets = bool(profile.track) or profile.data.name in _HUBS
    return Worker(prepared.threads, limits_of(profile), isolated=isolated, secrets=secrets)


def execute(
    prepared: Prepared, store: Store, progress: Progress, only: Collection[str], worker: Worker
) -> Executed:
    """Do some steps of a plan, and those before them, without a record; the caller holds the store."""
    state = _Run(
        prepared=prepared,
        store=store,
        progress=progress,
        wish=Wish(),
        log=lambda event, **facts: None,
        only=only,
        worker=worker,
    )
    state.execute()
    return state


def run(
    profile: PipelineProfile,
    store: Store,
    progress: Progress,
    wish: Wish = Wish(),
    *,
    lock_timeout: float = 0.0,
    reference: PipelineProfile | None = None,
    on_record: Callable[[str, dict[str, Any]], None] = lambda run, record: None,
) -> tuple[str, dict[str, Any]]:
    """Execute a profile; the run's id and its record, which is also saved.

    Args:
        reference: another profile, whose float model the versions are compared with.
        on_record: called with both while the store is still held, for what is written beside the record.
    Raises:
        HwoptError: nothing could be started; or the step that all others need was refused, which is recorded first.
    """
    started = datetime.now(UTC)
    with store.locked(lock_timeout):
        crossing("run.locked")
        prepared = prepare(profile, reference)
        for name in filter(None, (wish.start, wish.until)):
            named(prepared.plan, name)
        store.tidy()
        run_id, log = store.begin_run(started)
        log("run begins", run=run_id, profile=profile.name, started=started.isoformat(timespec="seconds"))
        crossing("run.begun")
        state = _Run(prepared=prepared, store=store, progress=progress, wish=wish, log=log)
        try:
            state.execute()
        except KeyboardInterrupt:
            log("run interrupted")
            raise
        except HwoptError as error:
            log("run failed", reason=error.problems[0].problem)
            raise
        record = make_record(
            run_id, started, prepared, state, rollback_state(store, profile.release.rollback)
        )
        crossing("run.judged")
        # As it will be read: a report of today and one of next year are the same bytes.
        record = json.loads(pretty_json(record))
        store.save_record(run_id, record)
        on_record(run_id, record)
        log("run ends", verdict=record["verdict"], status=record["status"])
    if state.fatal is not None:
        raise state.fatal
    return run_id, record
