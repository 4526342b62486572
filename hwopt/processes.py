"""Processes that work for this one: a line of JSON each way, limits, and why one died.

Whatever may crash, hang or eat memory (runtimes, converters, training, the user's modules) runs in a child; here
stands the one way to start it, ask it and end it. The child leads a session of its own, so that it is ended with what
it forked; children of a child notice by the end of their input that they are alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from hwopt import errors
from hwopt.errors import HwoptError, OutOfMemoryError, Problem, StageFailedError

Answer = dict[str, Any]
Say = Callable[[str], None]

LAST_WORDS: Final = 400
_GOODBYE_SECONDS: Final = 4.0  # from a polite request to end until the kill
_LOOK_SECONDS: Final = 0.5  # between two looks whether it is alive
_STACK_SECONDS: Final = 0.5  # for a hanging child to write its stack
_SECRET: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE|ACCESS_KEY", re.IGNORECASE)
_MEMORY: Final = re.compile(
    r"can't allocate memory|bad_alloc|Cannot allocate memory|out of memory", re.IGNORECASE
)
_START: Final = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from importlib import import_module; from hwopt.processes import serve; "
    "serve(import_module(sys.argv[2]).Operations, json.loads(sys.argv[3]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may use; None is no limit."""

    seconds: float | None = None  # for an answer; when they are over, the child is ended and its stack kept
    memory_bytes: int | None = None  # private memory, RLIMIT_DATA of setrlimit(2); Linux only
    file_bytes: int | None = None  # of one file that it writes


class Child:
    """A process that answers questions, one at a time.

    Args:
        entry: module with a class ``Operations`` whose public methods are the questions: each takes the values
            asked with as a mapping, and a function that shows progress, and returns JSON.
        threads: for libraries that read OMP_NUM_THREADS.
        secrets: whether variables that look like passwords are handed on.
    """

    def __init__(
        self, entry: str, *, threads: int, limits: Limits, secrets: bool = False, what: str = "the runtime"
    ) -> None:
        self.limits, self._what = limits, what
        self._over = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")
        # Threads that wait for each other by spinning take ten times as long where a core is also somebody else's.
        polite = {"OMP_WAIT_POLICY": "PASSIVE"}
        kept = {k: v for k, v in os.environ.items() if secrets or not _SECRET.search(k)}
        self._process = subprocess.Popen(
            # -P, and our path behind its own: nothing of the user's may shadow what the child imports.
            [
                sys.executable,
                "-P",
                "-c",
                _START,
                json.dumps([part for part in sys.path if part]),
                entry,
                json.dumps(asdict(limits)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env={**polite, **kept, **one, "OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def _listen(self) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed while it was read
            for line in self._process.stdout or ():
                self._answers.put(line)
        self._answers.put(None)

    def ask(self, op: str, /, *, more_seconds: float = 0.0, say: Say | None = None, **values: Any) -> Answer:
        """One question, one answer.

        Args:
            more_seconds: that the question is known to take, beside what the limits allow.
            say: gets the lines of progress.
        Raises:
            HwoptError: what the child raised; StageFailedError where it crashed or hung, OutOfMemoryError where it ran
                out of memory.
        """
        with contextlib.suppress(BrokenPipeError, ValueError):  # a dead process is told of below
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps({"op": op, **values}) + "\n")
                self._process.stdin.flush()
        allowed = None if self.limits.seconds is None else self.limits.seconds + more_seconds
        end = float("inf") if allowed is None else time.monotonic() + allowed
        dead = False
        while True:
            try:
                # In slices: what the child forked may hold its answers open after its death.
                line = self._answers.get(timeout=max(0.0, min(_LOOK_SECONDS, end - time.monotonic())))
            except queue.Empty:
                if dead:
                    raise self._death(op, values) from None
                dead = not self.alive  # one more look, at what it said before
                if dead or time.monotonic() < end:
                    continue
                stack = self._stop_hanging()
                raise StageFailedError(
                    f"{self._what} did not answer for {allowed:.0f} s while asked to {op} {_of(values)}, and was "
                    f"stopped{stack}",
                    fix="try another runtime, or give it more time (limits.step_seconds of the profile)",
                ) from None
            if line is None:
                self._answers.put(None)  # for whoever asks again
                raise self._death(op, values)
            answer: Answer = json.loads(line)
            if "say" in answer:
                if say is not None:
                    say(str(answer["say"]))
                continue
            if "error" in answer:
                raise _raised(answer["error"])
            return answer

    def _stop_hanging(self) -> str:
        """End a child that hangs; its innermost frames, as far as it could still write them."""
        before = self._said()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(_STACK_SECONDS)
        self.kill()
        # "Current thread" is the one that works; the reader of questions stands there too.
        stack = self._said()[len(before) :].partition("Current thread")[2]
        frames = re.findall(r'File "(?:.*/)?([^"/]+)", line (\d+) in (\S+)', stack)
        return (
            "; it hung in " + " < ".join(f"{f} ({file}:{n})" for file, n, f in frames[:3]) if frames else ""
        )

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()

    def _death(self, op: str, values: Mapping[str, Any]) -> HwoptError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_LOOK_SECONDS)  # it may be on its way out
        self.kill()  # what it started, and itself where it only closed its mouth
        code = self._process.wait()
        words = self._said()
        name = _signal_name(code) if code < 0 else f"exit code {code}"
        why = f"{name}; it last said: {words[-LAST_WORDS:]}" if words else name
        text = f"{self._what} crashed while asked to {op} {_of(values)}: {why}"
        if name == "SIGKILL":
            return StageFailedError(
                text, fix="it may have run out of memory: use fewer models, samples or processes at once"
            )
        return StageFailedError(text, fix="try another runtime, or another version of this one")

    def end(self) -> None:
        """Ask it to end, and kill it where it does not within a few seconds."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GOODBYE_SECONDS)
            self.kill()
        self.close()

    def kill(self) -> None:
        """End it now, with all that it forked."""
        if self._over:
            return  # its number may belong to another process by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._over = True

    def close(self) -> None:
        """No more questions."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GOODBYE_SECONDS)
        self.kill()
        self._listener.join(timeout=_LOOK_SECONDS)
        if self._process.stdout is not None and not self._listener.is_alive():
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, HwoptError):
            self.close()
        else:
            self.end()


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _raised(said: Mapping[str, Any]) -> HwoptError:
    kind = getattr(errors, str(said.get("kind")), StageFailedError)
    if not (isinstance(kind, type) and issubclass(kind, HwoptError)):
        kind = StageFailedError
    return kind.of([Problem(**problem) for problem in said["problems"]])


def _of(values: Mapping[str, Any]) -> str:
    """The models or the step that a question is about."""
    if "label" in values:
        return str(values["label"])
    sides = values.get("sides") or [values[name] for name in ("side",) if isinstance(values.get(name), dict)]
    names = dict.fromkeys(str(side["model"]).rpartition("/")[2] for side in sides)
    return ", ".join(names) or "what is loaded"


# --- the other end ------------------------------------------------------------------------------------------


def serve(operations: Callable[[], object], limits: Mapping[str, Any]) -> None:
    """Answer questions until the other end closes; it closes when it dies, and then nothing here outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    _restrict(limits)
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(message: Mapping[str, Any]) -> None:
        with lock:
            print(json.dumps(message), file=answers, flush=True)

    questions: queue.Queue[str | None] = queue.Queue()
    busy = threading.Lock()
    threading.Thread(target=_read, args=(questions, busy), daemon=True).start()
    worker = operations()
    while True:
        # A wait with an end: a signal is then heeded on every platform.
        try:
            line = questions.get(timeout=1.0)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            return
        if line is None:
            return
        try:
            with busy:
                tell(_answer(worker, json.loads(line), lambda text: tell({"say": text})))
        except (KeyboardInterrupt, BrokenPipeError):
            return


def _answer(worker: object, asked: Answer, say: Say) -> Answer:
    op = str(asked.pop("op"))
    try:
        if op.startswith("_") or not callable(getattr(worker, op, None)):
            raise ValueError(f"no operation {op!r}")
        found: Answer = getattr(worker, op)(asked, say)
        json.dumps(found, allow_nan=False)
        return found
    except HwoptError as error:
        return {"error": {"kind": type(error).__name__, "problems": [asdict(p) for p in error.problems]}}
    except Exception as error:  # a runtime's own exceptions share no base class but Exception
        raised = explained(error)
        return {"error": {"kind": type(raised).__name__, "problems": [asdict(p) for p in raised.problems]}}


def explained(error: Exception) -> HwoptError:
    """What a library raised, as an error of ours; each says in its own words that memory is short."""
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return OutOfMemoryError(
            "out of memory" + (f": {text}" if text else ""),
            fix="lower batch_size, raise limits.memory_gb of the profile, or use a machine with more memory",
        )
    return StageFailedError(f"{type(error).__name__}: {text}")


def _read(questions: queue.Queue[str | None], busy: threading.Lock) -> None:
    """Questions to the queue; when the other end is gone while one waits or is answered, nobody wants the answer."""
    for line in sys.stdin:
        questions.put(line)
    if not questions.empty() or busy.locked():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    questions.put(None)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _restrict(limits: Mapping[str, Any]) -> None:
    wanted: Sequence[tuple[int, int | None]] = (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
    )
    for kind, value in wanted:
        if value is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (value, hard))
