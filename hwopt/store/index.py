"""A list of the runs that is quick to read. The folders are the truth; this file can be deleted at any time."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VERSION: Final = 1
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, name TEXT, verdict TEXT, status TEXT, started TEXT, "
    "seconds REAL)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A line of ``runs list``."""

    run: str
    name: str
    verdict: str | None
    status: str  # finished, budget, until; unfinished: killed or still working; damaged
    started: str
    seconds: float


def summary_of(run: str, record: Mapping[str, Any]) -> Summary:
    """What the list shows of a record."""
    return Summary(
        run=run,
        name=str(record.get("name", "")),
        verdict=record.get("verdict"),
        status=str(record.get("status", "finished")),
        started=str(record.get("started", "")),
        seconds=float(record.get("seconds") or 0.0),
    )


def _look(folder: Path) -> Summary:
    """A run without a line in the index."""
    path = folder / "record.json"
    try:
        return summary_of(folder.name, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        status = "unfinished"
    except (OSError, ValueError, AttributeError, TypeError):
        status = "damaged"
    return Summary(run=folder.name, name="", verdict=None, status=status, started="", seconds=0.0)


def summaries(root: Path) -> list[Summary]:
    """Every run of a store, oldest first; the index is made or mended on the way."""
    try:
        with os.scandir(root / "runs") as entries:
            present = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    try:
        return _summaries(root, present)
    except sqlite3.OperationalError:  # locked, or a file system that sqlite cannot lock
        return [_look(root / "runs" / name) for name in present]
    except sqlite3.DatabaseError:  # torn, or of another version
        with contextlib.suppress(OSError):
            (root / "index.sqlite").unlink(missing_ok=True)
    try:
        return _summaries(root, present)
    except (sqlite3.Error, OSError):
        return [_look(root / "runs" / name) for name in present]


def _summaries(root: Path, present: list[str]) -> list[Summary]:
    with _opened(root) as database:
        rows = database.execute("SELECT id, name, verdict, status, started, seconds FROM runs").fetchall()
        known = {
            row[0]: Summary(
                run=row[0], name=row[1], verdict=row[2], status=row[3], started=row[4], seconds=row[5]
            )
            for row in rows
        }
        missing = [name for name in present if name not in known]
        fresh = {name: _look(root / "runs" / name) for name in missing}
        gone = known.keys() - set(present)
        with contextlib.suppress(sqlite3.OperationalError):  # a store that may only be read
            _write(database, [s for s in fresh.values() if s.status not in {"unfinished", "damaged"}])
            database.executemany("DELETE FROM runs WHERE id = ?", [(name,) for name in gone])
            database.commit()
    return [known.get(name) or fresh[name] for name in present]


def note(root: Path, summary: Summary) -> None:
    """Add a run that has just been recorded; nothing depends on its success."""
    with contextlib.suppress(sqlite3.Error, OSError), _opened(root) as database:
        _write(database, [summary])
        database.commit()


def _write(database: sqlite3.Connection, found: list[Summary]) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)",
        [(s.run, s.name, s.verdict, s.status, s.started, s.seconds) for s in found],
    )


@contextmanager
def _opened(root: Path) -> Iterator[sqlite3.Connection]:
    path = root / "index.sqlite"
    target = str(path) if path.exists() or os.access(root, os.W_OK) else ":memory:"
    database = sqlite3.connect(target, timeout=5.0)
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in {0, VERSION}:
            raise sqlite3.DatabaseError(f"index of version {version}")
        if version == 0:
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {VERSION}")
        yield database
    finally:
        database.close()
