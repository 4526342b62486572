"""Workers that share a storage: claims, leases, tags, versions; a worker that is killed costs nothing but its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from hwopt.core.crossings import VARIABLE
from hwopt.errors import ConfigError
from hwopt.search.crews import queue
from hwopt.search.crews.queue import QueueCrew
from hwopt.search.job import Job, Outcome
from hwopt.search.lead import Lead
from hwopt.search.ledger import Ledger, close_storage, is_away, open_storage
from hwopt.search.session import Wish
from hwopt.search.subject import Subject
from hwopt.store.store import Store
from tests.conftest import hwopt
from tests.search.servers import free_port, postgresql
from tests.search.subjects import LR, exact, subject

IDENTITY: dict[str, Any] = {"profile": "p", "data": "d", "hwopt": "1", "optuna": "5"}
PROFILE = """\
name: shared
threads: 1
data: {name: digits}
model: {name: mlp, hidden: [16]}
train: {epochs: 2, batch_size: 32}
candidates: {float: []}
targets: [host-cpu]
search:
  sampler: random
  trials: 6
  objectives: [{metric: validation_accuracy}]
  space: {train.optimizer.lr: {log: [1e-3, 3e-2]}}
"""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql", "grpc"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
    if request.param == "postgresql":
        shared = open_storage(request.getfixturevalue("database"), tmp_path)
        yield shared
        close_storage(shared)
    elif request.param == "sqlite":
        yield open_storage(None, tmp_path)
    else:
        port, url = free_port(), f"sqlite:///{tmp_path}/behind.db"
        words = ["search-server", "--storage", url, "--port", str(port)]
        command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", *words]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                assert server.stderr.readline() == f"serving at grpc://localhost:{port}\n"
                yield open_storage(f"grpc://localhost:{port}", tmp_path)
            finally:
                server.kill()


def ledger_of(storage: BaseStorage, of: Subject, name: str) -> Ledger:
    return Ledger(storage, name, of, identity=IDENTITY)


class Fake:
    """A worker that needs no training."""

    def __init__(self, seconds: float = 0.0, name: str = "fake") -> None:
        self.seconds, self.name, self.done = seconds, name, list[int]()

    def perform(self, job: Job) -> Outcome:
        time.sleep(self.seconds)
        self.done.append(job.trial)
        return Outcome(status="ok", values={"accuracy": exact(0.5)}, worker=self.name)


def job(number: int) -> Job:
    return Job(trial=number, sample={"train.optimizer.lr": 0.01}, trained=True)


def work(storage: BaseStorage, name: str, tags: set[str], worker: Fake) -> bool:
    """One claim and, where there was one, its job."""
    study = queue._study(storage, queue.jobs_of(name, IDENTITY))
    claimed = queue._claim(storage, study, tags)
    if claimed is not None:
        queue._do(storage, claimed, worker, lambda text: None)  # type: ignore[arg-type]
    return claimed is not None


def test_no_job_is_done_twice(storage: BaseStorage, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    of, name = subject(tmp_path, LR), request.node.name
    crew = QueueCrew(ledger_of(storage, of, name), of, 60.0)
    for number in range(12):
        crew.submit(job(number))
    workers = [Fake(0.01, f"w{i}") for i in range(4)]

    def serve(worker: Fake) -> None:
        while work(storage, name, {of.machine()}, worker):
            pass

    threads = [threading.Thread(target=serve, args=(w,)) for w in workers]
    for thread in threads:
        thread.start()
    found: list[tuple[Job, Outcome]] = []
    deadline = time.monotonic() + 60
    while len(found) < 12 and time.monotonic() < deadline:
        found += crew.wait(1.0)
    for thread in threads:
        thread.join()
    assert sorted(j.trial for j, _ in found) == list(range(12))
    assert sorted(t for w in workers for t in w.done) == list(range(12))


def test_a_dead_workers_job_is_given_to_another(
    storage: BaseStorage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    of, name = subject(tmp_path, LR), request.node.name
    crew = QueueCrew(ledger_of(storage, of, name), of, 1.0)
    crew.submit(job(0))
    study = queue._study(storage, queue.jobs_of(name, IDENTITY))
    lost = queue._claim(storage, study, {of.machine()})  # and never heard of again
    assert lost is not None
    assert crew.wait(0.1) == []
    deadline = time.monotonic() + 20
    while not work(storage, name, {of.machine()}, Fake(name="second")) and time.monotonic() < deadline:
        crew.wait(0.2)
    ((_, outcome),) = crew.wait(5.0)
    assert (outcome.status, outcome.worker) == ("ok", "second")
    # The first one comes back: nobody wants its result any more.
    queue._do(storage, lost, Fake(name="first"), lambda text: None)  # type: ignore[arg-type]
    assert crew.wait(0.1) == []


def test_three_lost_workers_are_a_result(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    of = subject(tmp_path, LR)
    crew = QueueCrew(ledger_of(storage, of, "x"), of, 0.2)
    crew.submit(job(0))
    study = queue._study(storage, queue.jobs_of("x", IDENTITY))
    found: list[tuple[Job, Outcome]] = []
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:
        queue._claim(storage, study, {of.machine()})
        found = crew.wait(0.3)
    assert (found[0][1].status, found[0][1].reason) == ("failed", "3 workers were lost over it")


def test_a_slow_worker_that_lives_keeps_its_job(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    of = subject(tmp_path, LR)
    crew = QueueCrew(ledger_of(storage, of, "x"), of, 2.5)
    crew.submit(job(0))
    worker = Fake(5.0)
    thread = threading.Thread(target=work, args=(storage, "x", {of.machine()}, worker))
    thread.start()
    found: list[tuple[Job, Outcome]] = []
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:
        found = crew.wait(1.0)
    thread.join()
    assert worker.done == [0]
    assert found[0][1].status == "ok"


def test_a_machine_of_another_kind_is_not_asked(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    of = subject(tmp_path, LR)
    crew = QueueCrew(ledger_of(storage, of, "x"), of, 60.0)
    crew.submit(job(0))
    assert not work(storage, "x", {"host-cpu: another, machine", "gpu"}, Fake())
    assert work(storage, "x", queue.tags_here(of), Fake())
    named = subject(tmp_path, LR, target="host-cpu")
    assert named.machine() in queue.tags_here(named)


def test_every_worker_that_comes_is_given_a_job_at_once_and_nobody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_LONELY_SECONDS", 0.2)
    storage, said = open_storage(None, tmp_path), list[str]()
    of = subject(tmp_path, LR)
    crew = QueueCrew(ledger_of(storage, of, "x"), of, 60.0, said.append)
    crew.submit(job(0))
    assert (crew.room(), crew.wait(1.0)) == (0, [])
    assert len(said) == 1
    assert f"no worker is here; jobs wait for a machine that is a {of.machine()}" in said[0]
    thread = threading.Thread(target=work, args=(storage, "x", {of.machine()}, Fake(4.0)))
    thread.start()
    began = time.monotonic()
    assert crew.wait(60.0) == []  # not for a minute: a worker has come, and another job makes sense
    assert (time.monotonic() - began < 4.0, crew.room()) == (True, 1)
    thread.join()
    assert [outcome.status for _, outcome in crew.wait(5.0)] == ["ok"]


def test_a_search_is_over_when_its_lead_says_so(tmp_path: Path) -> None:
    of = subject(tmp_path, LR)
    ledger = ledger_of(open_storage(None, tmp_path), of, "x")
    for why in (None, "3 trials are done", None):
        ledger.set_attribute("closed", why)
        assert queue._is_over(ledger.storage, ledger.study._study_id) == why


def test_a_worker_says_that_the_lead_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_LONELY_SECONDS", 0.2)
    of, said = subject(tmp_path, LR), list[str]()
    ledger = ledger_of(open_storage(None, tmp_path), of, "x")
    silence, where = queue._Silence(said.append), (ledger.storage, ledger.study._study_id)
    for beat in range(5):
        ledger.set_attribute("lead", {"id": "a", "beat": beat})
        silence.look(*where)
        time.sleep(0.1)
    assert said == []
    time.sleep(0.2)
    silence.look(*where)
    silence.look(*where)
    assert len(said) == 1
    ledger.set_attribute("lead", {"id": "b", "beat": 0})
    silence.look(*where)
    time.sleep(0.3)
    silence.look(*where)
    assert len(said) == 2


def test_versions_that_were_begun_are_finished_when_no_other_is_left(tmp_path: Path) -> None:
    """The space is exhausted while the structure of the last version is looked at: its training is still done."""
    storage = open_storage(None, tmp_path)
    space = {"model.hidden.0": {"one_of": [8, 16, 24]}}
    limits = [{"metric": "macs", "max": 10_000}]
    of = subject(tmp_path, space, limits, trials=6, sampler="random")
    crew = QueueCrew(ledger_of(storage, of, "x"), of, 60.0)
    lead = Lead(subject=of, ledger=ledger_of(storage, of, "x"), crew=crew, progress=lambda text: None)
    end = threading.Event()

    class Known:
        name = "known"

        def perform(self, job: Job) -> Outcome:
            values = (
                {"accuracy": exact(0.5)} if job.trained else {"macs": exact(5.0), "file_bytes": exact(5.0)}
            )
            return Outcome(status="ok", values=values, worker=self.name)

    def serve() -> None:
        while not end.is_set():
            if not work(storage, "x", {of.machine()}, Known()):  # type: ignore[arg-type]
                time.sleep(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert lead.run() == "every version of the space was tried"
    finally:
        end.set()
        thread.join()
    assert [t.status for t in lead.trials] == ["ok"] * 3


def test_a_new_lead_takes_over_what_the_old_one_asked_for(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    of = subject(tmp_path, LR)
    first = QueueCrew(ledger_of(storage, of, "x"), of, 60.0)
    first.submit(job(0))
    first.submit(job(1))
    worker = Fake()
    assert work(storage, "x", {of.machine()}, worker)
    second = QueueCrew(ledger_of(storage, of, "x"), of, 60.0)  # the first was killed
    second.submit(job(0))
    second.submit(job(1))
    assert work(storage, "x", {of.machine()}, worker)
    found = [*second.wait(1.0), *second.wait(1.0)]
    assert sorted(j.trial for j, _ in found) == [0, 1]
    assert sorted(worker.done) == [0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hwopt": "0.0.1"}, r"another version of hwopt \(0.0.1 there"),
        ({"optuna": "6.0.0"}, r"another version of Optuna \(6.0.0 there"),
        ({"data": "sha256:1"}, "another data"),
        ({"profile": "sha256:1"}, "another profile"),
    ],
)
def test_a_worker_of_another_version_is_refused(change: dict[str, str], says: str, tmp_path: Path) -> None:
    of = subject(tmp_path, LR)
    here = queue.Here(subject=of, store=Store(tmp_path / "store"), progress=lambda text: None)
    mine = queue.identity_of(of, here)
    url = f"sqlite:///{tmp_path}/shared.db"
    Ledger(open_storage(url, tmp_path), "made-up", of, identity={**mine, **change})
    with pytest.raises(ConfigError, match=says):
        queue.join(of.profile, Store(tmp_path / "store"), lambda text: None, Wish(storage=url))


COMMAND = [sys.executable, "-c", "from hwopt.cli.main import main; main()", "search", "search.yaml"]


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_lead_lose_nothing(tmp_path: Path, database: str) -> None:
    """Two workers over PostgreSQL: one dies in its second job, then the lead, and the result is that of one machine."""
    (tmp_path / "search.yaml").write_text(PROFILE)
    url = database
    shared = ["--storage", url, "--study", "killed", "--lease", "5"]

    def start(*more: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (tmp_path / "out.json").open("w") as out, (tmp_path / "err.log").open("a") as err:
            command = [*COMMAND, *shared, *more]
            return subprocess.Popen(
                command, cwd=tmp_path, stderr=err, stdout=out, env={**os.environ, **(env or {})}
            )

    doomed = start("--join", env={VARIABLE: "worker.worked"})
    worker = start("--join")
    lead = start("--crew", "queue", "--no-refit", "--json", env={VARIABLE: "search.noted:3"})
    assert lead.wait(120) == -signal.SIGKILL, (tmp_path / "err.log").read_text()
    lead = start("--crew", "queue", "--no-refit", "--json")
    assert lead.wait(120) == 0, (tmp_path / "err.log").read_text()
    out = (tmp_path / "out.json").read_text()
    assert doomed.wait(60) == -signal.SIGKILL
    assert worker.wait(60) == 0
    alone = hwopt("search", "search.yaml", "--no-refit", "--json", "--study", "alone", cwd=tmp_path)
    there, here = json.loads(out), alone.json
    assert [t["sample"] for t in there["trials"]] == [t["sample"] for t in here["trials"]]
    assert [t["values"] for t in there["trials"]] == [t["values"] for t in here["trials"]]
    assert there["winner"] == here["winner"]
    shared_storage = open_storage(url, tmp_path)
    states = [t.state for t in queue._study(shared_storage, "killed").get_trials()]
    close_storage(shared_storage)
    assert states == [TrialState.COMPLETE] * 6


def test_two_leads_of_one_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwopt.errors import LockHeldError
    from hwopt.search import session

    monkeypatch.setattr(session, "_BEAT_SECONDS", 0.3)
    of = subject(tmp_path, LR)
    ledger = ledger_of(open_storage(f"sqlite:///{tmp_path}/s.db", tmp_path), of, "x")
    with (
        session.leading(ledger, lambda text: None, shared=True),
        pytest.raises(LockHeldError, match="led by another process"),
        session.leading(ledger, lambda text: None, shared=True),
    ):
        pass
    with session.leading(ledger, lambda text: None, shared=True) as mine:  # the first is over
        mine()
    ledger.set_attribute("lead", {"id": "dead", "beat": 5})  # killed: its counter stands still
    with session.leading(ledger, lambda text: None, shared=True) as mine:
        mine()
        ledger.set_attribute("lead", {"id": "usurper", "beat": 0})
        time.sleep(1.5)
        with pytest.raises(LockHeldError, match="another process has taken the lead"):
            mine()


def test_replace_keeps_the_subject(tmp_path: Path) -> None:
    of = subject(tmp_path, LR)
    assert replace(of, settings=of.settings.model_copy(update={"trials": 3})).digest == of.digest


def test_a_server_that_was_started_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwopt.search.ledger._PAUSE_SECONDS", 0.2)
    port = free_port()
    words = ["search-server", "--storage", f"sqlite:///{tmp_path}/behind.db", "--port", str(port)]
    command = [sys.executable, "-c", "from hwopt.cli.main import main; main()", *words]

    def start() -> subprocess.Popen[str]:
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert server.stderr.readline().startswith("serving")
        return server

    def end(server: subprocess.Popen[str]) -> None:
        with server:
            server.kill()

    servers = [start()]
    try:
        ledger = ledger_of(open_storage(f"grpc://localhost:{port}", tmp_path), subject(tmp_path, LR), "x")
        ledger.set_attribute("closed", "before")
        end(servers.pop())
        with pytest.raises(Exception) as caught:  # noqa: PT011 (of a library that is optional)
            ledger.attribute("closed", patiently=False)
        assert is_away(caught.value)
        later = threading.Timer(1.0, lambda: servers.append(start()))
        later.start()
        assert ledger.attribute("closed") == "before"
        later.join()
    finally:
        for server in servers:
            end(server)
    assert not is_away(ValueError("a mistake of ours"))


@pytest.mark.parametrize("again", [True, False])
def test_a_worker_that_comes_before_the_lead_of_a_search_that_is_taken_up_again(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_ARRIVAL_SECONDS", 1.0)
    of, said = subject(tmp_path, LR), list[str]()
    storage = open_storage(None, tmp_path)
    ledger = ledger_of(storage, of, "x")
    ledger.set_attribute("closed", "3 trials are done")
    monkeypatch.setattr(queue, "identity_of", lambda *_: IDENTITY)
    monkeypatch.setattr(queue, "tags_here", lambda subject: {subject.machine()})
    crew = QueueCrew(ledger, of, 60.0)

    def take_up() -> None:
        ledger.set_attribute("closed", None)
        crew.submit(job(0))
        crew.wait(20.0)
        ledger.set_attribute("closed", "4 trials are done")

    later = threading.Timer(0.5, take_up)
    if again:
        later.start()
    fake: Any = Fake()
    done = queue._serve(storage, "x", of, fake, said.append, Wish(storage="sqlite"))
    assert done == int(again)
    assert said[1].startswith("the search is over: 3 trials are done; waiting")
    assert said[-1] == f"the search is over: {4 if again else 3} trials are done"
