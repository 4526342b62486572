"""The ledger: one JSON object a line, append-only; sinks get the same on a thread of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hwopt.core.canonical import JSON
from hwopt.tracking.sink import Sink

_WAITING: Final = 1000  # events; what a slow tracker does not take is dropped and counted
_PATIENCE: Final = 10.0  # seconds that the end of a run waits for trackers
_log = logging.getLogger(__name__)


class FileLedger:
    """A ledger in a file, with sinks.

    Args:
        warn: told in one line when a tracker is dropped.
    """

    def __init__(
        self, path: Path, sinks: Mapping[str, Sink] | None = None, warn: Callable[[str], None] = _log.warning
    ) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._introduction: tuple[str, dict[str, JSON]] | None = None
        self._introduced = False
        self._feeds = [_Feed(name, sink, warn) for name, sink in (sinks or {}).items()]

    def start(self, run: str, config: Mapping[str, JSON]) -> None:
        """Introduce the run to the sinks, once there is something to tell."""
        self._introduction = (run, flat(config))

    def _introduce(self) -> None:
        if self._introduction is not None:
            for feed in self._feeds:
                feed.put("start", *self._introduction)
            self._introduction = None
            self._introduced = True

    def log(self, step: int, values: Mapping[str, float], /) -> None:
        """Numbers after ``step`` steps; what is not finite is left out."""
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        if finite:
            self._write({"step": step, "values": dict[str, JSON](finite)})
            self._introduce()
            for feed in self._feeds:
                feed.put("log", step, finite)

    def note(self, step: int, text: str, /) -> None:
        """Something happened."""
        self._write({"step": step, "note": text})
        self._introduce()
        for feed in self._feeds:
            feed.put("note", step, text)

    def artifact(self, path: Path, kind: str) -> None:
        """A file was made."""
        for feed in self._feeds if self._introduced else ():
            feed.put("artifact", path, kind)

    def rewind(self, step: int, /, *, notes: bool = False) -> None:
        """Forget what was written after ``step``. Sinks keep it and get new numbers under old steps, which MLflow and
        TensorBoard show and Weights & Biases leaves out."""
        self._file.close()
        kept = [line for line in read(self._path) if 0 < line["step"] <= step or (notes and "note" in line)]
        temporary = self._path.with_suffix(".writing")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self, status: str) -> None:
        """Wait for the sinks, a little."""
        self._file.close()
        for feed in self._feeds:
            feed.close(status if self._introduced else None)

    def _write(self, entry: JSON) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


class _Feed:
    """One sink on its own thread."""

    def __init__(self, name: str, sink: Sink, warn: Callable[[str], None]) -> None:
        self._name, self._sink, self._warn = name, sink, warn
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(_WAITING)
        self._lost, self._dead = 0, False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, verb: str, *given: Any) -> None:
        if self._dead:
            return
        try:
            self._queue.put_nowait((verb, given))
        except queue.Full:
            self._lost += 1

    def close(self, status: str | None) -> None:
        """``status`` None: the run was never introduced."""
        if status is not None:
            self.put("finish", status)
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_PATIENCE)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._warn(f"tracker {self._name}: did not end within {_PATIENCE:.0f} s, and is left behind")
        elif self._lost:
            self._warn(f"tracker {self._name}: too slow, {self._lost} entries were dropped")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            verb, given = item
            try:
                getattr(self._sink, verb)(*given)
            except Exception as error:  # a tracker that dies never kills a run
                self._dead = True
                text = str(error).splitlines()[0] if str(error) else ""
                self._warn(f"tracker {self._name}: dropped, {type(error).__name__}: {text}")
                return


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger; a last line that a kill cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry


def replay(lines: Sequence[Mapping[str, Any]], sink: Sink, run: str, config: Mapping[str, JSON]) -> int:
    """Feed a finished ledger to a sink, afterwards; the number of entries."""
    sink.start(run, flat(config))
    for line in lines:
        if "values" in line:
            sink.log(int(line["step"]), dict(line["values"]))
        else:
            sink.note(int(line["step"]), str(line.get("note", "")))
    sink.finish("ok")
    return len(lines)


def flat(config: Mapping[str, JSON], prefix: str = "") -> dict[str, JSON]:
    """Nested settings as ``a.b.c``; lists as text."""
    found: dict[str, JSON] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return found
