"""Rows 4 to 12 and 20 to 23 of the fault table: disks, locks, clocks, versions, numbers."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hwopt.config.profile import load
from hwopt.core.artifact import Kind
from hwopt.core.canonical import digest_of_file
from hwopt.engine.perform import foreign_code
from hwopt.engine.prepare import prepare
from hwopt.engine.record import SCHEMA_VERSION
from hwopt.errors import (
    ConfigError,
    FileTooLargeError,
    HwoptError,
    LockHeldError,
    ResourceLimitError,
    StageFailedError,
)
from hwopt.planning import planner
from hwopt.report.render import FORMATS, render
from hwopt.store import atomic, index
from hwopt.store.care import audit, remove, waste
from hwopt.store.events import EventLog, read_events
from hwopt.store.lock import Owner, release
from hwopt.store.store import READABLE, Store
from tests.conftest import ROOT, hwopt
from tests.faults import small
from tests.store.records import record

KEY = "sha256:" + "a" * 64


def work(store: Store, contents: bytes, number: int = 0) -> str:
    """One step and one run, as a pipeline does it; the run's id."""
    source = store.root.parent / f"source-{os.getpid()}-{number}"
    source.write_bytes(contents)
    artifact = store.put(source, Kind.ONNX)
    store.commit(KEY[:-4] + f"{number:04d}", f"step {number}", {"model": artifact}, {"n": number}, 0.1, {})
    run, log = store.begin_run(datetime.now(UTC))
    log("run begins", run=run)
    store.save_record(run, record(run))
    return run


def whole(store: Store) -> None:
    found = audit(store)
    assert found.whole, found
    assert not list(store.root.rglob(".tmp-*"))


# --- 4 to 7: writing ----------------------------------------------------------------------------------------


def _failing(nth: int, code: int, calls: list[int]) -> Callable[..., Any]:
    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == nth:
                raise OSError(code, os.strerror(code))
            return real(*given, **more)

        return call

    return wrap


def _raised(store: Store, nth: int) -> HwoptError | None:
    try:
        work(store, b"new %d" % nth, nth)
    except HwoptError as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_every_write_fsync_and_rename_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The n-th call into the disk fails, for every n until nothing fails: the old state stays, the next try works."""
    store = Store(tmp_path / "store")
    work(store, b"old")
    wanted = ResourceLimitError if code in {errno.ENOSPC, errno.EDQUOT} else ConfigError
    for nth in range(1, 200):
        calls = [0]
        with monkeypatch.context() as patch:
            wrap = _failing(nth, code, calls)
            patch.setattr(atomic.os, "fsync", wrap(os.fsync))
            patch.setattr(atomic.tempfile, "mkstemp", wrap(atomic.tempfile.mkstemp))
            patch.setattr(Path, "replace", wrap(Path.replace))
            raised = _raised(store, nth)
        store.tidy()
        whole(store)
        assert store.finished(KEY[:-4] + "0000", {}) is not None
        if raised is None:
            break
        assert isinstance(raised, wanted), raised
    assert 8 < nth < 199
    if code == errno.ENOSPC:
        assert wanted.exit_code == 8


def test_power_is_lost_between_rename_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not synced is gone after the rename; so nothing may be renamed that was not."""
    synced: set[tuple[int, int]] = set()
    fsync, rename = os.fsync, Path.replace

    def note(descriptor: int) -> None:
        fsync(descriptor)
        state = os.fstat(descriptor)
        synced.add((state.st_dev, state.st_ino))

    def lossy(self: Path, target: Path) -> Path:
        state = self.stat()
        if (state.st_dev, state.st_ino) not in synced:
            self.write_bytes(b"")  # the disk never saw its contents
        moved = rename(self, target)
        synced.discard((target.parent.stat().st_dev, target.parent.stat().st_ino))
        return moved

    monkeypatch.setattr(atomic.os, "fsync", note)
    monkeypatch.setattr(Path, "replace", lossy)
    store = Store(tmp_path / "store")
    run = work(store, b"contents")
    whole(store)
    for path in [store.root / "steps", store.run_folder(run)]:
        state = path.stat()
        assert (state.st_dev, state.st_ino) in synced, f"{path.name} was not synced after the rename"


def _namespace(script: str) -> subprocess.CompletedProcess[str]:
    """A shell with mounts of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount in a namespace (unshare -rm)")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux namespaces")
RUN = f"{sys.executable} -c 'from hwopt.cli.main import main; main()' pipeline run"


@pytest.mark.slow
@linux
def test_a_full_disk_is_exit_8(tmp_path: Path) -> None:
    small.write(tmp_path)
    said = _namespace(
        f"mount -t tmpfs -o size=200k none {tmp_path}; cd {tmp_path}; "
        f"printf '%s' \"$PROFILE\" > p.yaml; {RUN} p.yaml; echo code $?; "
        f"ls .hwopt/steps 2>/dev/null | wc -l; find .hwopt -name '.tmp-*' | wc -l".replace(
            '"$PROFILE"', "'" + small.PROFILE + "'"
        )
    )
    assert "code 8" in said.stdout, said.stdout + said.stderr
    assert "the disk is full" in said.stderr
    assert "free space and run again" in said.stderr


@linux
@pytest.mark.parametrize("verb", ["run", "plan", "list"])
def test_a_store_that_may_only_be_read(tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "store"
    work(Store(folder), b"x")
    small.write(tmp_path)
    command = {
        "run": f"{RUN} {tmp_path}/p.yaml",
        "plan": f"{RUN.replace(' run', ' plan')} {tmp_path}/p.yaml",
        "list": f"{RUN.replace('pipeline run', 'runs list')}",
    }[verb]
    said = _namespace(
        f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}; {command} --store {folder}; echo code $?"
    )
    assert f"code {2 if verb == 'run' else 0}" in said.stdout, said.stdout + said.stderr
    if verb == "run":
        assert "cannot write" in said.stderr
        assert "--store" in said.stderr
    assert len(list((folder / "runs").iterdir())) == 1


# --- 8 and 9: who works in a store ---------------------------------------------------------------------------

_MANY = """
import sys
from pathlib import Path
from hwopt.store.store import Store
from tests.faults.test_store_faults import work
store = Store(Path(sys.argv[1]))
for n in range(int(sys.argv[2])):
    with store.locked(120):
        work(store, b"contents %d" % (n % 3), n % 7)
"""


@pytest.mark.parametrize(("processes", "times"), [(4, 6), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_several_at_once(tmp_path: Path, processes: int, times: int) -> None:
    folder = tmp_path / "store"
    started = [
        subprocess.Popen([sys.executable, "-c", _MANY, str(folder), str(times)], cwd=ROOT)
        for _ in range(processes)
    ]
    assert [p.wait(timeout=500) for p in started] == [0] * processes
    store = Store(folder)
    assert len(store.runs()) == processes * times == len(store.summaries())
    whole(store)


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({"pid": 2**22 - 3, "started": "1"}, 0, False),  # a process that is gone
        ({"started": "12"}, 0, False),  # its number is used again
        ({"boot": "another"}, 0, False),  # the machine was started anew
        ({"host": "elsewhere"}, 0, True),  # another machine, alive
        ({"host": "elsewhere"}, 600, False),  # another machine, silent
        ({"host": "elsewhere"}, -1e6, False),  # a clock that makes no sense
    ],
    ids=["dead", "number used again", "rebooted", "other host", "silent", "odd clock"],
)
def test_stale_owners_are_known(tmp_path: Path, changes: dict[str, Any], age: float, held: bool) -> None:
    store = Store(tmp_path / "store")
    store.root.mkdir()
    owner = replace(Owner.of_this_process(), beat=time.time() - age, **changes)
    (store.root / "owner.json").write_text(json.dumps(asdict(owner)))
    if held:
        with pytest.raises(LockHeldError, match="elsewhere"), store.locked(0):
            pass
        assert LockHeldError.exit_code == 7
        with pytest.raises(LockHeldError):
            release(store.root, force=False)
        assert "removed" in release(store.root, force=True)
    with store.locked(0):
        said = json.loads((store.root / "owner.json").read_text())
        assert said["pid"] == os.getpid()
        assert said["host"] == socket.gethostname()
    assert not (store.root / "owner.json").exists()


def test_words_without_sense_hold_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.root.mkdir()
    for words in ("", "{", "[]", '{"pid": 1}', "\0"):
        (store.root / "owner.json").write_text(words)
        with store.locked(0):
            pass


def test_the_second_run_is_told_who_the_first_is(tmp_path: Path) -> None:
    store = Store(tmp_path / ".hwopt")
    small.write(tmp_path)
    with store.locked(0):
        outcome = hwopt("pipeline", "run", "p.yaml", cwd=tmp_path)
    assert outcome.code == 7
    assert f"process {os.getpid()} on" in outcome.err
    assert "--lock-timeout" in outcome.err


# --- 10 to 12: what is on the disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["deleted", "torn", "garbage", "another version", "a folder"])
def test_the_index_can_be_lost(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path / "store")
    runs = [work(store, b"x", n) for n in range(3)]
    path = store.root / "index.sqlite"
    assert [s.run for s in store.summaries()] == runs
    if damage == "deleted":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "garbage":
        path.write_bytes(b"no database" * 500)
    elif damage == "another version":
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.commit()
        database.close()
    else:
        path.unlink()
        path.mkdir()
    assert [s.run for s in store.summaries()] == runs
    assert [s.verdict for s in store.summaries()] == ["PASS"] * 3


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    work(store, os.urandom(20_000))
    (digest,) = store.objects()
    path = store.object_path(digest)
    contents = path.read_bytes()
    for at in range(0, len(contents), 1000):
        flipped = bytearray(contents)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert store.finished(KEY[:-4] + "0000", {}) is None
        assert not path.exists()
        path.write_bytes(contents)
    path.write_bytes(contents[:-1])
    found = audit(store)
    assert found.damaged == (digest,)
    assert (store.root / "quarantine" / path.name).is_file()
    assert digest_of_file(store.root / "quarantine" / path.name) != digest


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = work(store, b"x")
    path = store.run_folder(run) / "record.json"
    path.write_text(path.read_text().replace('"PASS"', '"FAIL"'))
    with pytest.raises(ConfigError, match="changed after it was written"):
        store.record(run)
    assert audit(store).broken_records == (run,)
    with pytest.raises(ConfigError, match="never changed"):
        store.save_record(run, record(run))


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log("first", reason="a line\u2028separator and \u0085 another")
    log("second")
    with (tmp_path / "events.jsonl").open("ab") as handle:
        handle.write(b'00000000 {"seq": 3, "eve')
    assert [e["event"] for e in read_events(tmp_path / "events.jsonl")] == ["first", "second"]


def test_what_nobody_needs_can_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    runs = [work(store, b"x%d" % n, n) for n in range(4)]
    store.tag(runs[0], "released")
    found = waste(store, keep=1, older_than_days=None, now=datetime.now(UTC))
    assert set(found.runs) == {runs[1], runs[2]}
    remove(store, found)
    assert store.runs() == [runs[0], runs[3]]
    assert [s.run for s in store.summaries()] == [runs[0], runs[3]]
    whole(store)


# --- 20 to 23: versions and numbers --------------------------------------------------------------------------


def test_records_of_another_schema(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert READABLE[-1] == SCHEMA_VERSION
    folder = store.run_folder("20260101T000000-aaaaaa")
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes((ROOT / "tests" / "goldens" / "record-v1.json").read_bytes())
    old = store.record("latest")
    assert old["schema_version"] == SCHEMA_VERSION
    for form in FORMATS:
        assert render(old, form)
    (folder / "record.json").write_text(json.dumps(record("x", schema_version=SCHEMA_VERSION + 1)))
    with pytest.raises(ConfigError, match=f"schema_version {SCHEMA_VERSION + 1}") as caught:
        store.record("latest")
    assert caught.value.problems[0].fix == "upgrade hwopt"


def test_five_thousand_runs_are_listed_from_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    (store.root / "runs").mkdir(parents=True)
    for n in range(5000):
        folder = store.root / "runs" / f"20260101T000000-{n:06d}-abcd"
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps(record(folder.name)))
    assert len(store.summaries()) == 5000
    looked: list[Path] = []
    real = index._look
    monkeypatch.setattr(index, "_look", lambda folder: looked.append(folder) or real(folder))
    start = time.process_time()
    assert len(store.summaries()) == 5000
    assert not looked  # not one record was opened
    assert time.process_time() - start < 5  # one second is the promise; any machine, however busy


def test_new_library_versions_are_new_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write(tmp_path)
    profile = load(tmp_path / "p.yaml")
    before = {s.label: s.key for s in prepare(profile).plan.steps}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == "torch" else real(name))
    planner._version.cache_clear()  # as a new process would have it
    after = {s.label: s.key for s in prepare(profile).plan.steps}
    planner._version.cache_clear()
    assert before.keys() == after.keys()
    assert all(before[label] != after[label] for label in before)


class SafetensorError(Exception):
    """As safetensors raises it: no OSError, and the number stands in the text."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left"), ResourceLimitError),
        (
            SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
            ResourceLimitError,
        ),
        (OSError(errno.EFBIG, "File too large"), FileTooLargeError),
        (
            SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
            FileTooLargeError,
        ),
        (SafetensorError("invalid header"), StageFailedError),
    ],
)
def test_a_full_disk_is_the_machines_and_a_large_file_the_versions(
    error: Exception, expected: type[HwoptError]
) -> None:
    with pytest.raises(expected) as caught, foreign_code(None):
        raise error
    assert type(caught.value) is expected
    assert isinstance(caught.value, StageFailedError) is (expected is not ResourceLimitError)


@pytest.mark.slow
def test_a_version_that_is_too_large_does_not_end_the_others(tmp_path: Path) -> None:
    text = small.PROFILE.replace("name:", "limits: {file_gb: 0.00001}\nname:", 1)
    (tmp_path / "p.yaml").write_text(text)
    found = hwopt("pipeline", "run", "p.yaml", "--json", cwd=tmp_path)
    assert found.code in {1, 5}, found.err
    assert {r["candidate"]: r["status"] for r in found.json["results"]}["int8"] == "failed"
    assert "a file grew beyond limits.file_gb" in found.err
