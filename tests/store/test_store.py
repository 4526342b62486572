from __future__ import annotations

import errno
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hwopt.core.artifact import Kind
from hwopt.errors import ConfigError, LockHeldError, ResourceLimitError
from hwopt.store import atomic
from hwopt.store.store import Store
from tests.store.records import record

KEY = "sha256:" + "a" * 64
INPUTS = {"checkpoint": "sha256:" + "b" * 64}


def with_step(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    source = tmp_path / "file"
    source.write_bytes(b"weights")
    artifact = store.put(source, Kind.ONNX)
    store.commit(KEY, "a step", {"model": artifact}, {"n": 1}, 0.5, INPUTS)
    return store


def test_finished_step_comes_back(tmp_path: Path) -> None:
    found = with_step(tmp_path).finished(KEY, INPUTS)
    assert found is not None
    assert found.facts == {"n": 1}
    assert found.artifacts["model"].path.read_bytes() == b"weights"


def test_changing_the_source_does_not_reach_the_store(tmp_path: Path) -> None:
    store = with_step(tmp_path)
    (tmp_path / "file").write_bytes(b"other")
    found = store.finished(KEY, INPUTS)
    assert found is not None
    assert found.artifacts["model"].path.read_bytes() == b"weights"


@pytest.mark.parametrize("damage", [b"weightz", b"weight", b""])
def test_damaged_object_is_set_aside_and_the_step_runs_again(tmp_path: Path, damage: bytes) -> None:
    store = with_step(tmp_path)
    found = store.finished(KEY, INPUTS)
    assert found is not None
    path = found.artifacts["model"].path
    path.write_bytes(damage)
    assert store.finished(KEY, INPUTS) is None
    assert not path.exists()
    assert [p.read_bytes() for p in (store.root / "quarantine").iterdir()] == [damage]


def test_step_whose_input_was_made_anew_is_not_finished(tmp_path: Path) -> None:
    assert with_step(tmp_path).finished(KEY, {"checkpoint": "sha256:" + "c" * 64}) is None


def test_torn_step_entry_is_not_finished(tmp_path: Path) -> None:
    store = with_step(tmp_path)
    entry = next((store.root / "steps").iterdir())
    entry.write_text(entry.read_text()[:50])
    assert store.finished(KEY, INPUTS) is None


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    atomic.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(ResourceLimitError, match="disk is full"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]  # no temporary file is left


def test_lock_is_held_and_freed_by_a_dead_owner(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    code = (
        "import os\nfrom pathlib import Path\nfrom hwopt.store.store import Store\n"
        f"with Store(Path({str(store.root)!r})).locked(0):\n    print('held', flush=True)\n    input()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(LockHeldError, match="another hwopt run"), store.locked(0):
        pass
    owner.kill()
    owner.communicate()
    with store.locked(1):
        pass


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    store = with_step(tmp_path)
    (store.root / "work" / "old").mkdir(parents=True)
    torn = store.root / "steps" / ".tmp-abc"
    torn.write_text("half")
    store.tidy()
    assert not (store.root / "work").exists()
    assert not torn.exists()
    assert store.finished(KEY, INPUTS) is not None
    with store.workdir() as folder:
        assert list((store.root / "work").iterdir()) == [folder]
    assert not folder.exists()


def test_run_ids_sort_in_the_order_of_the_runs_whatever_the_clock_says(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    noon = datetime(2026, 10, 25, 12, 0, 0, tzinfo=UTC)
    clock = [noon, noon, noon - timedelta(hours=1), noon - timedelta(days=400), noon + timedelta(seconds=1)]
    ids = [store.begin_run(moment)[0] for moment in clock]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    for run in ids:
        store.save_record(run, record(run))
    assert store.runs() == ids
    assert store.record("latest")["run"] == ids[-1]


def test_records_by_prefix_latest_and_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match="no run"):
        store.record("latest")
    for name in ("20260101T000000-aaaaaa", "20260102T000000-bbbbbb"):
        store.save_record(name, record(name))
    assert store.record("latest")["run"].endswith("bbbbbb")
    assert store.record("20260101")["run"].endswith("aaaaaa")
    with pytest.raises(ConfigError, match="names 2 runs"):
        store.record("2026")
    store.save_record("20260103T000000-cccccc", {**record("x"), "schema_version": 3})
    with pytest.raises(ConfigError, match="schema_version 3"):
        store.record("latest")
