"""Machines that share a storage: jobs are trials of a second study, and a worker claims one by setting it to running.

That step is the storage's own and succeeds for one worker only. A worker shows that it lives by a counter beside its
job. The lead watches the counter on its own clock, so that clocks are never compared; where it stands still for the
length of a lease, the job is given to another worker, and what the first one brings later is not taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hwopt.core.canonical import JSON, canonical_json, digest_of
from hwopt.core.crossings import crossing
from hwopt.core.profile import HOST_CPU, PipelineProfile
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.prepare import prepare
from hwopt.errors import ConfigError, HwoptError, LockHeldError, StageFailedError
from hwopt.search.job import Job, Outcome
from hwopt.search.ledger import Ledger, agree, close_storage, created, open_storage, patient
from hwopt.search.perform import Here
from hwopt.search.samplers import quiet
from hwopt.search.session import Wish, identity_of
from hwopt.search.subject import Subject, host_tag
from hwopt.store.store import Store

_POLL_SECONDS: Final = 0.3
_LONELY_SECONDS: Final = 30.0
_ATTEMPTS: Final = 3  # workers that may be lost over a job
_PATIENCE_SECONDS: Final = 600.0  # that a worker waits for a search to begin
_ARRIVAL_SECONDS: Final = 60.0  # and for one that has ended, to be taken up again
_SHARES: Final = 64  # stores of workers beside each other on one machine


def jobs_of(name: str, identity: Mapping[str, JSON]) -> str:
    """Name of the study that holds a search's jobs: of this question, and of no other under the same name."""
    return f"{name} (jobs {digest_of(dict(identity))[-12:]})"


@dataclass(slots=True)
class _Out:
    """A job that is with the workers."""

    job: Job
    trial_id: int
    attempt: int
    beat: Any = None
    seen: float = 0.0


class QueueCrew:
    """The lead's side."""

    def __init__(
        self, ledger: Ledger, subject: Subject, lease_seconds: float, progress: Progress = silent
    ) -> None:
        self._storage, self._lease, self._progress = ledger.storage, lease_seconds, progress
        self._lonely = time.monotonic() + _LONELY_SECONDS
        self._study = _study(ledger.storage, jobs_of(ledger.name, ledger.attribute("hwopt")))
        self._tag = subject.machine()
        self._out: dict[str, _Out] = {}
        self._left: dict[str, list[tuple[int, FrozenTrial]]] = {}
        for trial in self._study.get_trials(deepcopy=False):  # of a lead that is gone
            if trial.state is not TrialState.FAIL and "job" in trial.user_attrs:
                self._left.setdefault(trial.user_attrs["job"], []).append((trial._trial_id, trial))

    @classmethod
    def lead(
        cls, ledger: Ledger, subject: Subject, store: Path, lease_seconds: float, progress: Progress
    ) -> QueueCrew:
        """For ``hwopt.search.session``."""
        return cls(ledger, subject, lease_seconds, progress)

    def room(self) -> int:
        """One job for every worker that lives, and one that waits for the first to be free."""
        return max(1, self._workers() + 1) - len(self._out)

    def _workers(self) -> int:
        return sum(out.beat is not None for out in self._out.values())

    def submit(self, job: Job) -> None:
        """Put a job where workers find it; one that an earlier lead put there is taken over."""
        if not self._out:
            self._lonely = time.monotonic() + _LONELY_SECONDS
        left = self._left.pop(job.key, [])
        trial_id = left[-1][0] if left else self._put(job, 1)
        self._out[job.key] = _Out(job, trial_id, 1, seen=time.monotonic())

    def _put(self, job: Job, attempt: int) -> int:
        facts: dict[str, JSON] = {"job": job.key, "tag": self._tag, "attempt": attempt}
        return created(self._storage, self._study._study_id, _waiting(facts))

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Outcomes, as workers bring them; none as soon as another worker has come, who wants a job."""
        deadline, room = time.monotonic() + seconds, self.room()
        while True:
            found = [(out.job, outcome) for out in list(self._out.values()) if (outcome := self._look(out))]
            for job, _ in found:
                del self._out[job.key]
            if found or self.room() > room or time.monotonic() >= deadline:
                return found
            self._say_that_nobody_comes()
            time.sleep(_POLL_SECONDS)

    def _say_that_nobody_comes(self) -> None:
        now = time.monotonic()
        if self._workers():
            self._lonely = now + _LONELY_SECONDS
        elif self._out and now > self._lonely:
            self._lonely = now + 10 * _LONELY_SECONDS
            self._progress(
                f"no worker is here; jobs wait for a machine that is a {self._tag}: hwopt search … --join"
            )

    def _look(self, out: _Out) -> Outcome | None:
        trial = patient(lambda: self._storage.get_trial(out.trial_id))
        if trial.state is TrialState.COMPLETE:
            return Outcome.from_json(json.loads(trial.user_attrs["outcome"]))
        if trial.state is TrialState.WAITING:
            out.seen = time.monotonic()
            return None
        beat = trial.user_attrs.get("beat")
        if trial.state is TrialState.RUNNING and beat != out.beat:
            out.beat, out.seen = beat, time.monotonic()
            return None
        if trial.state is TrialState.RUNNING and time.monotonic() - out.seen < self._lease:
            return None
        with contextlib.suppress(UpdateFinishedTrialError):
            patient(lambda: self._storage.set_trial_state_values(out.trial_id, state=TrialState.FAIL))
        if out.attempt >= _ATTEMPTS:
            return Outcome(status="failed", reason=f"{_ATTEMPTS} workers were lost over it")
        out.attempt, out.beat, out.seen = out.attempt + 1, None, time.monotonic()
        out.trial_id = self._put(out.job, out.attempt)
        return None

    def withdraw(self) -> list[Job]:
        """Take back what no worker has begun."""
        found = []
        for key, out in list(self._out.items()):
            # Claimed first, as a worker would: then nobody else can begin it.
            with contextlib.suppress(UpdateFinishedTrialError):
                if patient(partial(self._put_back, out.trial_id)):
                    found.append(out.job)
                    del self._out[key]
        return found

    def _put_back(self, trial_id: int) -> bool:
        claimed = self._storage.set_trial_state_values(trial_id, state=TrialState.RUNNING)
        if claimed:
            self._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
        return bool(claimed)

    def close(self) -> None:
        """What workers still do is for the next lead."""


def join(profile: PipelineProfile, store: Store, progress: Progress, wish: Wish) -> int:
    """Work for a search that another process leads, until it ends; the number of jobs done.

    Raises:
        ConfigError: no storage; or the lead has another profile, data or version.
    """
    if wish.storage is None:
        raise ConfigError(
            "a worker finds its jobs in a shared storage",
            fix="give the lead's --storage postgresql://USER@HOST/DB",
        )
    subject, name = Subject.of(profile), wish.study or profile.name
    storage = open_storage(wish.storage, store.root / "search")
    with own_store(store) as own:
        me = f"{socket.gethostname()}/{os.getpid()}"
        here = Here(subject=subject, store=own, progress=lambda text: progress("    " + text), name=me)
        try:
            return _serve(storage, name, subject, here, progress, wish)
        finally:
            here.close()
            close_storage(storage)


def _serve(
    storage: BaseStorage, name: str, subject: Subject, here: Here, progress: Progress, wish: Wish
) -> int:
    mine = identity_of(subject, here)
    ledger_id: int | None = None
    tags, done = tags_here(subject), 0
    deadline = time.monotonic() + _PATIENCE_SECONDS
    progress(f"worker {here.name} for the search {name}, with the tags {', '.join(sorted(tags))}")
    study: optuna.Study | None = None
    silence = _Silence(progress)
    # Workers and lead of a search that is taken up again may be started together: the first look may be too early.
    leaves: float | None = time.monotonic() + _ARRIVAL_SECONDS
    waits = False
    ends = None if wish.seconds is None else time.monotonic() + wish.seconds
    while True:
        if ends is not None and time.monotonic() > ends:
            progress("the time is over")
            return done
        if ledger_id is None:
            found = patient(lambda: _found(storage, name))
            kept = None if found is None else _facts(storage, found).get("hwopt")
            if found is None or kept is None:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"no search {name!r} began in this storage", fix="start its lead: --crew queue"
                    )
                time.sleep(_POLL_SECONDS)
                continue
            agree(json.loads(kept), mine, f"the search {name!r}")
            ledger_id = found
            jobs = jobs_of(name, json.loads(kept))
            study = patient(partial(_study, storage, jobs))
        if study is None:
            raise StageFailedError("no jobs are kept")
        claimed = _claimed(storage, study, tags)
        if claimed is not None:
            _do(storage, claimed, here, progress)
            done += 1
            continue
        why = _is_over(storage, ledger_id)
        if why is None:
            leaves = None  # a lead is there, or was
            silence.look(storage, ledger_id)
        elif leaves is None or time.monotonic() > leaves:
            progress(f"the search is over: {why}")
            return done
        elif not waits:
            waits = True
            progress(f"the search is over: {why}; waiting a moment for a lead that takes it up again")
        time.sleep(_POLL_SECONDS)


def _is_over(storage: BaseStorage, study_id: int) -> str | None:
    """Why the search ended; None while it goes on, or after a lead has taken it up again."""
    closed = _facts(storage, study_id).get("closed")
    return None if closed is None else json.loads(closed)


def _facts(storage: BaseStorage, study_id: int) -> Mapping[str, Any]:
    return patient(lambda: storage.get_study_user_attrs(study_id))


@dataclass(slots=True)
class _Silence:
    """Says once that the lead shows no sign of life: it was interrupted or killed, and may be started again."""

    progress: Progress
    beat: Any = None
    since: float = field(default_factory=time.monotonic)
    said: bool = False

    def look(self, storage: BaseStorage, study_id: int) -> None:
        beat, now = _facts(storage, study_id).get("lead"), time.monotonic()
        if beat != self.beat:
            self.beat, self.since, self.said = beat, now, False
        elif not self.said and now - self.since > _LONELY_SECONDS:
            self.progress("the lead is silent; waiting until it is started again")
            self.said = True


def _claimed(storage: BaseStorage, study: optuna.Study, tags: set[str]) -> FrozenTrial | None:
    return patient(lambda: _claim(storage, study, tags))


def _claim(storage: BaseStorage, study: optuna.Study, tags: set[str]) -> FrozenTrial | None:
    """A job of ours, now running; None where none waits."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        if trial.user_attrs.get("tag") not in tags:
            continue
        with contextlib.suppress(UpdateFinishedTrialError):
            if storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                crossing("worker.claimed")
                return trial
    return None


def _do(storage: BaseStorage, trial: FrozenTrial, here: Here, progress: Progress) -> None:
    """Do a claimed job and bring its outcome; where the lease ran out meanwhile, nobody wants it any more."""
    job = Job.from_json(json.loads(trial.user_attrs["job"]))
    progress(job.name)
    with _alive(storage, trial._trial_id):
        try:
            outcome = here.perform(job)
        except HwoptError as error:  # a full disk: another worker may have room
            with contextlib.suppress(UpdateFinishedTrialError):
                storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
            raise error.at(f"worker {here.name}") from None
    crossing("worker.worked")
    text = canonical_json(outcome.to_json())
    try:
        patient(lambda: storage.set_trial_user_attr(trial._trial_id, "outcome", text))
        crossing("worker.told")
        patient(
            lambda: storage.set_trial_state_values(trial._trial_id, state=TrialState.COMPLETE, values=[0.0])
        )
    except UpdateFinishedTrialError:
        progress("the lease ran out; another worker has this job")


@contextmanager
def _alive(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """Move the counter of a job while it is worked at."""
    end = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with contextlib.suppress(Exception):  # the storage may be away for a moment
                storage.set_trial_user_attr(trial_id, "beat", count)
            count += 1
            if end.wait(1.0):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def own_store(store: Store) -> Iterator[Store]:
    """A store for one worker, beside those of others on the same machine."""
    for place in range(1, _SHARES + 1):
        own = Store(store.root / "workers" / str(place))
        own.root.mkdir(parents=True, exist_ok=True)
        taken = Store(own.root / "taken")
        try:
            with taken.locked(0.0):
                yield own
                return
        except LockHeldError:
            continue
    raise LockHeldError(f"{_SHARES} workers have their stores in {store.root}", fix="give another --store")


def _study(storage: BaseStorage, name: str) -> optuna.Study:
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)


def _found(storage: BaseStorage, name: str) -> int | None:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _waiting(facts: dict[str, JSON]) -> FrozenTrial:
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.WAITING,
        value=None,
        values=None,
        datetime_start=None,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs=facts,
        system_attrs={"queued": datetime.now().isoformat()},
        intermediate_values={},
    )


def tags_here(subject: Subject) -> set[str]:
    """What this machine may be taken for: itself, and every target of the profile that is served here."""
    served = {row.target for row in prepare(subject.profile).plan.rows if row.unavailable is None}
    return {host_tag(), *(served - {HOST_CPU})}
