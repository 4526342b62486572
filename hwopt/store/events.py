"""What happened in a run, line by line: appended, checked, never changed."""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwopt.core.canonical import JSON, canonical_json
from hwopt.store.atomic import explained


class EventLog:
    """Append-only lines of JSON, each with a sequence number and a checksum (CRC-32 of the rest)."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        self._torn = False  # whether the last write may have left half a line
        self._lock = threading.Lock()

    def __call__(self, event: str, **facts: JSON) -> None:
        """One line, on the disk when this returns."""
        with self._lock:
            self._count += 1
            entry: dict[str, JSON] = {
                "seq": self._count,
                "time": round(time.time(), 3),
                "event": event,
                **facts,
            }
            text = canonical_json(entry)
            line = f"{zlib.crc32(text.encode()):08x} {text}\n"
            try:
                with self._path.open("a", encoding="utf-8") as handle:
                    if self._torn:
                        handle.write("\n")
                    self._torn = True
                    handle.write(line)
                    handle.flush()
                    os.fsync(handle.fileno())
                self._torn = False
            except OSError as error:
                raise explained(error, self._path) from error


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log, in order; torn and damaged ones are left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if not text or checksum != f"{zlib.crc32(text):08x}".encode():
            continue
        entry: dict[str, Any] = json.loads(text)
        yield entry
