"""Rows 1 to 3 of the fault table: cut off anywhere, the next run goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hwopt.core.crossings import NAMES, VARIABLE
from tests.faults import small

# Files that do not depend on the day: trained, exported, evaluated.
LASTING = ("train", "export", "quantize")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    small.write(folder)
    code, record, said = small.run(folder)
    assert code == 0, said
    assert record is not None
    return small.finished(folder)


def same_results(folder: Path, undisturbed: dict[str, dict[str, str]]) -> None:
    found = small.finished(folder)
    assert found.keys() == undisturbed.keys()
    for label, files in found.items():
        if label.startswith(LASTING):
            mine = {port: digest for port, digest in files.items() if port != "ledger"}
            assert mine == {port: d for port, d in undisturbed[label].items() if port != "ledger"}, label


@pytest.mark.parametrize(
    "names", [NAMES[4:12:3], pytest.param(NAMES, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_killed_at_every_named_place(
    names: tuple[str, ...], tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    """One store, a run for each place; each is cut off there, and the next goes on from what is finished."""
    small.write(tmp_path)
    for name in names:
        if small.finished(tmp_path).keys() == undisturbed.keys():
            shutil.rmtree(tmp_path / ".hwopt")  # nothing is left to be cut off: from the beginning
        before, earlier = small.finished(tmp_path), small.steps_begun(tmp_path)
        # Of the write places the first is the owner's name, before there is a run.
        count = 3 if name.startswith("write.") else 1
        code, _, said = small.run(tmp_path, **{VARIABLE: f"{name}:{count}"})
        small.nothing_torn(tmp_path)
        assert before.items() <= small.finished(tmp_path).items(), f"{name}: a finished step was lost"
        begun = small.steps_begun(tmp_path)
        repeated = set(begun[-1]) & before.keys() if len(begun) > len(earlier) else set()
        assert not repeated, f"{name}: {repeated} were finished and began again"
        in_worker = name.startswith("stage.")
        assert code == (5 if in_worker else -signal.SIGKILL), f"{name}: {code}\n{said}"
    code, record, said = small.run(tmp_path)
    assert code == 0, said
    assert record is not None
    assert record["status"] == "finished"
    same_results(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_random_times(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]], number: signal.Signals
) -> None:
    interrupted(tmp_path, undisturbed, number, times=3)


@pytest.mark.slow
def test_interrupted_fifty_times(tmp_path: Path, undisturbed: dict[str, dict[str, str]]) -> None:
    interrupted(tmp_path, undisturbed, signal.SIGINT, times=50)


def interrupted(
    folder: Path, undisturbed: dict[str, dict[str, str]], number: signal.Signals, times: int
) -> None:
    dice = random.Random(int(number))  # noqa: S311 - not for secrets
    small.write(folder)
    for _ in range(times):
        process = small.start(folder)
        try:
            process.wait(timeout=0.5 + dice.random() * 4)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            asked = time.monotonic()
            _, said = process.communicate(timeout=30)
            # Five seconds are the promise; another job may share the machine.
            assert time.monotonic() - asked < 15
            assert process.returncode == 130, said
            assert "interrupted" in said
            assert "memory" not in said
            assert "Traceback" not in said
        else:
            process.communicate()
        small.nothing_torn(folder)
    code, _, said = small.run(folder)
    assert code == 0, said
    same_results(folder, undisturbed)


@pytest.mark.slow
def test_a_second_interrupt_leaves_the_store_whole(
    tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    small.write(tmp_path)
    process = small.start(tmp_path)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    small.nothing_torn(tmp_path)
    assert small.run(tmp_path)[0] == 0
    same_results(tmp_path, undisturbed)


CRASHING = """\
import os
from torch.optim import SGD


class Boom(SGD):
    def step(self, closure=None):
        os.kill(os.getpid(), {signal})
"""


@pytest.mark.slow
def test_a_crashing_candidate_takes_no_other_along(tmp_path: Path) -> None:
    (tmp_path / "boom.py").write_text(CRASHING.format(signal=int(signal.SIGSEGV)))
    boom = '{finetune: {epochs: 1, distill: null, optimizer: {name: "boom:Boom", lr: 0.1}}}, {quantize: {method: ptq}}'
    small.write(tmp_path, small.PROFILE.replace("  int8:", f"  broken: [{boom}]\n  int8:"))
    code, record, said = small.run(tmp_path)
    assert code == 5, said
    assert record is not None
    rows = {r["candidate"]: r for r in record["results"]}
    assert rows["broken"]["status"] == "failed"
    assert "SIGSEGV" in rows["broken"]["reason"]
    assert rows["int8"]["status"] == "ok"


@pytest.mark.slow
def test_a_hanging_candidate_ends_at_its_limit(tmp_path: Path) -> None:
    text = CRASHING.format(signal=0).replace("os.kill(os.getpid(), 0)", "__import__('time').sleep(600)")
    (tmp_path / "boom.py").write_text(text)
    boom = '{finetune: {epochs: 1, distill: null, optimizer: {name: "boom:Boom", lr: 0.1}}}, {quantize: {method: ptq}}'
    profile = (
        small.PROFILE.replace("  int8:", f"  broken: [{boom}]\n  int8:") + "limits: {step_seconds: 20}\n"
    )
    small.write(tmp_path, profile)
    code, record, said = small.run(tmp_path)
    assert code == 5, said
    assert record is not None
    rows = {r["candidate"]: r for r in record["results"]}
    assert "did not answer for 20 s" in rows["broken"]["reason"]
    assert "step (boom.py:" in rows["broken"]["reason"]
    assert rows["int8"]["status"] == "ok"


@pytest.mark.slow
def test_the_time_budget_ends_a_run_and_the_next_goes_on(tmp_path: Path) -> None:
    small.write(tmp_path)
    code, record, said = small.run(tmp_path, "--time-budget", "3.5")
    assert record is not None
    if code == 0:
        pytest.skip("this machine was done before the budget was over")
    assert code == 8, said
    assert record["status"] == "budget"
    assert {r["status"] for r in record["results"] if r["details"]["applicable"]} <= {"ok", "stopped"}
    assert small.run(tmp_path)[0] == 0


@pytest.mark.slow
def test_until_from_and_jobs(tmp_path: Path) -> None:
    small.write(tmp_path)
    code, record, said = small.run(tmp_path, "--until", "export")
    assert code == 0, said
    assert record is not None
    status = {s["label"]: s["status"] for s in record["steps"]}
    assert status["export int8"] == "ok"
    assert {v for k, v in status.items() if k.startswith(("evaluate", "benchmark"))} == {"stopped"}
    code, record, said = small.run(tmp_path, "--from", "export int8")
    assert code == 0, said
    assert record is not None
    status = {s["label"]: s["status"] for s in record["steps"]}
    assert status["train the float model"] == "cached"
    assert status["export int8"] == "ok"
    again = next(s for s in record["steps"] if s["label"] == "export int8")
    assert again["again"] == "same"  # made twice, the same bytes
    code, _, said = small.run(tmp_path, "--until", "exprot")
    assert code == 2
    assert "did you mean 'export'" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_no_worker_is_left_behind(tmp_path: Path) -> None:
    small.write(tmp_path)
    process = small.start(tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "[1/" in line:
            break
    time.sleep(1.0)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if str(tmp_path) not in listed and "hwopt.engine.perform" not in listed:
            return
        time.sleep(0.2)
    pytest.fail("a worker is still there")
