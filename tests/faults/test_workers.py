"""Row 13 of the fault table: what dies in a worker is a result with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwopt.errors import StageFailedError
from hwopt.processes import Child, Limits

ENTRY = "tests.faults.boom"


def child(**limits: float) -> Child:
    return Child(ENTRY, threads=1, limits=Limits(**limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("killed", "SIGKILL"),
        ("leave", "exit code 3"),
        ("not_a_number", "ValueError"),
        ("nonsense", "no operation"),
        ("_signal", "no operation"),
    ],
)
def test_every_death_has_a_reason(question: str, says: str) -> None:
    with child(seconds=60) as worker, pytest.raises(StageFailedError, match=says):
        worker.ask(question)


def test_a_kill_is_taken_for_a_lack_of_memory() -> None:
    with child(seconds=60) as worker, pytest.raises(StageFailedError) as caught:
        worker.ask("killed")
    assert "memory" in str(caught.value.problems[0].fix)


def test_a_hang_ends_with_its_place() -> None:
    with child(seconds=1.5) as worker:
        start = time.monotonic()
        with pytest.raises(StageFailedError, match=r"did not answer for 2 s.*it hung in deep_inside"):
            worker.ask("hang")
        assert time.monotonic() - start < 20
        assert not worker.alive


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_memory_and_file_sizes_are_limited(tmp_path: Path) -> None:
    with child(memory_bytes=1 << 30, file_bytes=1_000_000, seconds=60) as worker:
        with pytest.raises(StageFailedError, match="out of memory"):
            worker.ask("memory")
        with pytest.raises(StageFailedError, match="File too large"):
            worker.ask("big_file", path=str(tmp_path / "big"))
        assert worker.ask("answer")["pid"] == worker.pid  # it goes on


def test_words_on_stdout_do_not_get_between_the_answers() -> None:
    with child(seconds=60) as worker:
        assert worker.ask("chatter") == {"ok": True}
        said: list[str] = []
        assert worker.ask("answer", say=said.append)["pid"] == worker.pid
        assert said == ["working"]


def test_secrets_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2")
    monkeypatch.setenv("MY_SETTING", "x")
    with child(seconds=60) as worker:
        answer = worker.ask("answer")
    assert (answer["secret"], answer["plain"]) == (None, "x")
    with Child(ENTRY, threads=1, limits=Limits(seconds=60), secrets=True) as worker:
        assert worker.ask("answer")["secret"] == "hunter2"  # noqa: S105 - a test's


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to read an environment from")
@pytest.mark.parametrize("mine", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_the_user_says_so(
    mine: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if mine is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", mine)
    with child(seconds=60) as worker:
        worker.ask("answer")
        variables = Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert f"OMP_WAIT_POLICY={mine or 'PASSIVE'}".encode() in variables


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hwopt.processes import Child, Limits\n"
        f"c = Child({ENTRY!r}, threads=1, limits=Limits())\n"
        "c.ask('answer'); Path(sys.argv[1]).write_text(str(c.pid))\n"
        "import threading; threading.Timer(1.0, lambda: os.kill(os.getpid(), 9)).start(); c.ask('hang')\n"
    )
    file = tmp_path / "pid"
    subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=Path(__file__).parents[2], check=False, timeout=60
    )
    pid = int(file.read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
