"""The store: ``objects/`` by digest, ``steps/`` by key, ``runs/`` by id. Files are the only truth."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import JSON, digest_of_file, pretty_json
from hwopt.core.crossings import crossing
from hwopt.errors import ConfigError
from hwopt.plugins import did_you_mean
from hwopt.store.atomic import copy_file, explained, make_folder, write_text
from hwopt.store.events import EventLog
from hwopt.store.index import Summary, note, summaries, summary_of
from hwopt.store.lock import locked

READABLE: Final = (1, 2)  # versions of the record's schema; see docs/record.md
_SEAL: Final = "record.sha256"
_NEEDED: Final = ("run", "name", "verdict", "choice", "results", "steps", "started", "profile", "environment")
_ABANDONED_SECONDS: Final = 30 * 86400
_ID: Final = re.compile(r"\d{8}T\d{6}-\d{6}-[0-9a-f]{4}")
_OLD_ID: Final = re.compile(r"\d{8}T\d{6}-")
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a step left: files by port, and facts."""

    artifacts: Mapping[str, Artifact]
    facts: Mapping[str, Any]
    seconds: float


class Store:
    """A folder; several processes may read it, one at a time runs a pipeline in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Hold the store for a run; LockHeldError after ``timeout`` seconds. A dead owner frees it."""
        with locked(self.root, timeout):
            yield

    @contextmanager
    def workdir(self) -> Iterator[Path]:
        """A folder for one step, gone afterwards."""
        parent = self.root / "work"
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, parent) from error
        try:
            place = tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise explained(error, parent) from error
        with place as name:
            yield Path(name)

    def tidy(self) -> None:
        """Remove what killed runs left half-written; the caller holds the store."""
        shutil.rmtree(self.root / "work", ignore_errors=True)
        for old in (self.root / "partial").glob("*"):  # abandoned: nobody came back for it
            if time.time() - old.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        for torn in self.root.glob(".tmp-*"):
            torn.unlink(missing_ok=True)
        for name in ("objects", "steps", "runs", "tags"):
            for torn in (self.root / name).rglob(".tmp-*"):
                torn.unlink(missing_ok=True)

    def partial(self, key: str, *, fresh: bool = False) -> Path:
        """A folder for what a step resumes from after a kill; ``settle`` removes it.

        Args:
            fresh: what lies there is not to be used.
        """
        parent = self.root / "partial"
        path = parent / key.partition(":")[2]
        if fresh:
            shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise explained(error, path) from error
        return path

    def settle(self, key: str) -> None:
        """The step is finished: there is nothing to resume."""
        shutil.rmtree(self.root / "partial" / key.partition(":")[2], ignore_errors=True)

    def object_path(self, digest: str) -> Path:
        """Where the file with this digest stands."""
        algorithm, _, value = digest.partition(":")
        return self.root / "objects" / algorithm / value[:2] / value

    def put(self, path: Path, kind: Kind) -> Artifact:
        """Take a copy of a file."""
        try:
            digest = digest_of_file(path)
            place = self.object_path(digest)
            if not place.is_file() or digest_of_file(place) != digest:
                copy_file(path, place)
        except OSError as error:
            raise explained(error, path) from error
        return Artifact(kind=kind, digest=digest, bytes=path.stat().st_size, path=place)

    def commit(
        self,
        key: str,
        label: str,
        artifacts: Mapping[str, Artifact],
        facts: Mapping[str, JSON],
        seconds: float,
        inputs: Mapping[str, str],
        basis: Mapping[str, JSON] | None = None,
    ) -> None:
        """Record that a step is finished; its files are already in ``objects/``, ``inputs`` are digests."""
        crossing("step.stored")
        entry: dict[str, JSON] = {
            "schema_version": 1,
            "key": key,
            "label": label,
            "inputs": dict(inputs),
            "outputs": {
                port: {"kind": a.kind.value, "digest": a.digest, "bytes": a.bytes}
                for port, a in artifacts.items()
            },
            "facts": dict(facts),
            "seconds": seconds,
            "basis": dict(basis or {}),
        }
        write_text(self._step_path(key), pretty_json(entry))
        crossing("step.committed")

    def finished(self, key: str, inputs: Mapping[str, str]) -> Finished | None:
        """A finished step, if it was made from ``inputs`` (digests by port) and all its files are whole.

        A step whose input was made anew with other contents is not finished. A damaged file is set aside.
        """
        try:
            entry: Any = json.loads(self._step_path(key).read_text())
            if entry["inputs"] != dict(inputs):
                return None
            artifacts = {
                port: Artifact(
                    kind=Kind(o["kind"]),
                    digest=o["digest"],
                    bytes=o["bytes"],
                    path=self.object_path(o["digest"]),
                )
                for port, o in entry["outputs"].items()
            }
            result = Finished(artifacts=artifacts, facts=entry["facts"], seconds=entry["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        whole = [self._whole(artifact) for artifact in artifacts.values()]
        return result if all(whole) else None

    def ledger(self, key: str) -> Path | None:
        """What a finished step wrote down while it worked; None where it wrote nothing."""
        try:
            entry: Any = json.loads(self._step_path(key).read_text())
            path = self.object_path(entry["outputs"]["ledger"]["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if path.is_file() else None

    def whole(self, digest: str) -> bool:
        """Whether the file with this digest is here and is what its name says."""
        path = self.object_path(digest)
        return path.is_file() and digest_of_file(path) == digest

    def objects(self) -> list[str]:
        """Digests of all files."""
        folder = self.root / "objects"
        return [f"{p.parts[-3]}:{p.name}" for p in folder.glob("*/*/*") if not p.name.startswith(".")]

    def set_aside(self, digest: str) -> None:
        """Put a damaged file where nothing reads it."""
        quarantine = self.root / "quarantine"
        path = self.object_path(digest)
        with contextlib.suppress(OSError):  # a store that may only be read, or another process was quicker
            quarantine.mkdir(exist_ok=True)
            path.replace(quarantine / path.name)

    def forget(self, key: str) -> None:
        """A step is to be done again when it is next needed."""
        self._step_path(key).unlink(missing_ok=True)

    def _whole(self, artifact: Artifact) -> bool:
        if not artifact.path.is_file():
            return False
        if digest_of_file(artifact.path) == artifact.digest:
            return True
        self.set_aside(artifact.digest)
        return False

    def step_entry(self, key: str) -> dict[str, Any] | None:
        """What is on record of a finished step, unchecked; None for nothing."""
        try:
            entry: dict[str, Any] = json.loads(self._step_path(key).read_text())
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def step_entries(self) -> list[dict[str, Any]]:
        """All finished steps, newest first."""
        paths = sorted((self.root / "steps").glob("*.json"), key=lambda p: -p.stat().st_mtime)
        found = (self.step_entry("sha256:" + path.stem) for path in paths)
        return [entry for entry in found if entry is not None]

    def _step_path(self, key: str) -> Path:
        return self.root / "steps" / (key.partition(":")[2] + ".json")

    def run_folder(self, run: str) -> Path:
        """Where a run's record, events and reports stand."""
        return self.root / "runs" / run

    def begin_run(self, now: datetime) -> tuple[str, EventLog]:
        """A new run's id and its log; the caller holds the store.

        Ids sort in the order of the runs, also where the clock was set back: ``time-sequence-chance``.
        """
        known = [name for name in self._folders() if _OLD_ID.match(name)]
        newest = known[-1] if known else ""
        time_part, _, rest = newest.partition("-")
        sequence = int(rest.partition("-")[0]) + 1 if _ID.fullmatch(newest) else len(known) + 1
        run = f"{max(f'{now:%Y%m%dT%H%M%S}', time_part)}-{sequence:06d}-{secrets.token_hex(2)}"
        folder = self.run_folder(run)
        try:
            make_folder(folder.parent)
            folder.mkdir()
        except OSError as error:
            raise explained(error, folder) from error
        return run, EventLog(folder / "events.jsonl")

    def save_record(self, run: str, record: dict[str, Any]) -> Path:
        """Write the record; it is never changed afterwards."""
        path = self.run_folder(run) / "record.json"
        if path.exists():
            raise ConfigError("a record is never changed", where=str(path))
        text = pretty_json(record)
        write_text(path, text)
        crossing("run.recorded")
        write_text(path.with_name(_SEAL), hashlib.sha256(text.encode()).hexdigest() + "\n")
        note(self.root, summary_of(run, record))
        crossing("run.indexed")
        return path

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.root / "runs") as entries:
                return sorted(entry.name for entry in entries)
        except OSError:
            return []

    def runs(self) -> list[str]:
        """Ids of all recorded runs, oldest first."""
        return [name for name in self._folders() if (self.run_folder(name) / "record.json").is_file()]

    def summaries(self) -> list[Summary]:
        """All runs with what a list shows, oldest first, those without a record too."""
        return summaries(self.root)

    def tags(self) -> dict[str, str]:
        """Run ids by tag."""
        found = {}
        for path in sorted((self.root / "tags").glob("*")):
            if not path.name.startswith("."):
                found[path.name] = path.read_text().strip()
        return found

    def tag(self, run: str, name: str) -> None:
        """Let ``name`` mean a run; it may be moved later, and the run's log says so."""
        if not _TAG.fullmatch(name) or name == "latest":
            raise ConfigError(
                f"{name!r} cannot be a tag", fix="use letters, digits, dot, dash and underscore"
            )
        run = self.run_id(run)
        write_text(self.root / "tags" / name, run + "\n")

    def run_id(self, run: str) -> str:
        """The id that ``run`` means: an id, its beginning, a tag, or ``latest``; ConfigError for none or several."""
        known = self.runs()
        run = self.tags().get(run, run)
        if run == "latest" and known:
            return known[-1]
        matches = [run] if run in known else [name for name in known if run and name.startswith(run)]
        if len(matches) != 1:
            problem = (
                f"no run {run!r} in {self.root}" if not matches else f"{run!r} names {len(matches)} runs"
            )
            hints = [*known[-10:], "latest", *self.tags()]
            raise ConfigError(problem, fix=did_you_mean(run, hints) if known else "run a pipeline first")
        return matches[0]

    def record(self, run: str) -> dict[str, Any]:
        """The record of a run; an id, its beginning, a tag, or ``latest``. ConfigError for an unknown or broken one."""
        path = self.run_folder(self.run_id(run)) / "record.json"
        broken = "the run's profile makes a new one; hwopt runs verify looks at all of them"
        try:
            text = path.read_text(encoding="utf-8")
            record: dict[str, Any] = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"the record is damaged: {error}", where=str(path), fix=broken) from None
        seal = path.with_name(_SEAL)
        if seal.is_file() and seal.read_text().strip() != hashlib.sha256(text.encode()).hexdigest():
            raise ConfigError("the record was changed after it was written", where=str(path), fix=broken)
        version = record.get("schema_version") if isinstance(record, dict) else None
        if version not in READABLE:
            raise ConfigError(
                f"the record has schema_version {version}; this hwopt reads {' and '.join(map(str, READABLE))}",
                where=str(path),
                fix="upgrade hwopt",
            )
        missing = [name for name in _NEEDED if name not in record]
        if missing:
            raise ConfigError(f"the record lacks {', '.join(missing)}", where=str(path), fix=broken)
        return upgraded(record)


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record of an older schema in today's words; what it did not hold is null."""
    if record["schema_version"] == 1:
        record = {**record, "schema_version": 2, "status": "finished", "source": None, "data": None}
        record |= {"bounds": [], "release": None, "readiness": None}
        record["steps"] = [{"outputs": {}, **step} for step in record["steps"]]
        for row in record["results"]:
            row["details"].setdefault("inspection", None)
    return record
