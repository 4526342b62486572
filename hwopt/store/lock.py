"""One run at a time in a store, and who it is.

The kernel's lock on ``lock`` decides between processes of one machine: it is gone with its owner, however that ended.
File systems that machines share do not all pass such locks on, so ``owner.json`` says besides who works there: process,
its start, the boot of its machine, and a heartbeat.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from hwopt.errors import LockHeldError
from hwopt.store.atomic import explained, write_text

_BEAT_SECONDS: Final = 10.0
STALE_SECONDS: Final = 60.0  # without a heartbeat, an owner on another machine is taken for dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who works in a store."""

    host: str
    boot: str  # of the machine; another one means that every process of then is gone
    pid: int
    started: str  # of the process, as the kernel counts it; a process id is used again
    since: float  # seconds of the clock
    beat: float

    @classmethod
    def of_this_process(cls) -> Owner:
        """As seen now."""
        now = time.time()
        return cls(
            host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=_started(os.getpid()),
            since=now, beat=now,
        )  # fmt: skip

    def state(self, now: float) -> str:
        """``alive``, or why it is not."""
        if self.host != socket.gethostname():
            silent = now - self.beat
            return "alive" if abs(silent) < STALE_SECONDS else f"no sign of life for {silent:.0f} s"
        if self.boot != _boot():
            return "its machine was started anew"
        started = _started(self.pid)
        if started == "":
            return "the process is gone"
        return "alive" if started == self.started else "another process has its number now"

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


def _boot() -> str:
    """Of this machine; changes with every start."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the boot; empty where there is no such process."""
    try:
        # Field 22 of proc(5); the name in brackets may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if platform.system() == "Linux":
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "running"
    return "running"


def owner(root: Path) -> Owner | None:
    """Who wrote that it works in the store; None for nobody, or for words that say nothing."""
    try:
        said: Any = json.loads((root / "owner.json").read_text())
        return Owner(**said)
    except (OSError, ValueError, TypeError):
        return None


def release(root: Path, *, force: bool) -> str:
    """Remove what a dead owner left; what was done, in words.

    Raises:
        LockHeldError: the owner is alive and ``force`` is not given.
    """
    found = owner(root)
    if found is None:
        return "nobody holds the store"
    state = found.state(time.time())
    if state == "alive" and not force:
        raise LockHeldError(
            f"the store is held by {found}",
            where=str(root),
            fix="wait for it, or end it; --force if you are sure",
        )
    (root / "owner.json").unlink(missing_ok=True)
    return f"removed the lock of {found} ({state})"


@contextmanager
def locked(root: Path, timeout: float) -> Iterator[None]:
    """Hold the store; LockHeldError with the owner after ``timeout`` seconds."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, root / "lock") from error
    lock = FileLock(root / "lock")
    end = time.monotonic() + timeout
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise _held(root, owner(root)) from None
    except OSError as error:
        raise explained(error, root / "lock") from error
    try:
        # Of this machine, whoever holds the kernel's lock is alone; what others wrote counts.
        while (other := owner(root)) is not None and other.host != socket.gethostname():
            if other.state(time.time()) != "alive":
                break
            if time.monotonic() >= end:
                raise _held(root, other)
            time.sleep(0.1)
        with _beating(root):
            yield
    finally:
        lock.release()


def _held(root: Path, other: Owner | None) -> LockHeldError:
    return LockHeldError(
        "another hwopt run works in this store" + (f": {other}" if other else ""),
        where=str(root),
        fix="wait for it, give --lock-timeout SECONDS, or choose another --store",
    )


@contextmanager
def _beating(root: Path) -> Iterator[None]:
    me = Owner.of_this_process()
    path = root / "owner.json"
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a missed beat is no reason to end a run
                write_text(path, json.dumps({**asdict(me), "beat": time.time()}))

    write_text(path, json.dumps(asdict(me)))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)
