"""Processes that measure, seen from the pipeline: start them, ask them, and say why one died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hwopt import errors
from hwopt.errors import HwoptError, StageFailedError
from hwopt.measuring.block import Block
from hwopt.measuring.sides import Round

_ANSWER_SECONDS: Final = 900.0  # loading may compile; a runtime that hangs is a failed step
_LAST_WORDS: Final = 400
_START: Final = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from hwopt.latency.worker import main; main()"
)


class Process:
    """One process with fresh sessions; it is a place where rounds are run."""

    def __init__(self, threads: int, seconds: float = _ANSWER_SECONDS) -> None:
        self._seconds = seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            # -P, and our path behind its own: nothing of the user's may shadow what the worker imports.
            [sys.executable, "-P", "-c", _START, json.dumps([part for part in sys.path if part])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **one, "OMP_NUM_THREADS": str(threads)},
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, op: str, more_seconds: float = 0.0, **values: Any) -> dict[str, Any]:
        """One question, one answer.

        Args:
            more_seconds: that the question is known to take, beside what a runtime may need.
        Raises:
            StageFailedError: the runtime refused, crashed or did not answer in time.
        """
        with contextlib.suppress(BrokenPipeError, ValueError):  # a dead process is told of below
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps({"op": op, **values}) + "\n")
                self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=self._seconds + more_seconds)
        except queue.Empty:
            self._process.kill()
            raise StageFailedError(
                f"the runtime did not answer for {self._seconds + more_seconds:.0f} s while asked to {op} "
                f"{_of(values)}, and was stopped",
                fix="try another runtime",
            ) from None
        if line is None:
            self._answers.put(None)  # for whoever asks again
            why, fix = self._why()
            raise StageFailedError(f"the runtime crashed while asked to {op} {_of(values)}: {why}", fix=fix)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            said = answer["error"]
            kind: type[HwoptError] = getattr(errors, said.get("kind") or "", StageFailedError)
            raise kind(said["problem"], where=said["where"], fix=said["fix"])
        return answer

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def rounds(self, asked: Sequence[Round], /) -> list[list[Block]]:
        """The blocks of each round, by side."""
        answer = self.ask("rounds", rounds=[[list(one.order), list(one.session)] for one in asked])
        return [[Block(seconds=s, clean=bool(c)) for s, c in blocks] for blocks in answer["blocks"]]

    def _why(self) -> tuple[str, str]:
        code = self._process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        memory = "it may have run out of memory: measure fewer models at once, or --processes 1"
        fix = memory if name == "SIGKILL" else "try another runtime, or another version of this one"
        return (f"{name}; it last said: {words[-_LAST_WORDS:]}" if words else name), fix

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _of(values: Mapping[str, Any]) -> str:
    """The files that a question is about."""
    sides = values.get("sides") or [values[name] for name in ("side",) if isinstance(values.get(name), dict)]
    return ", ".join(dict.fromkeys(Path(side["model"]).name for side in sides)) or "what is loaded"
