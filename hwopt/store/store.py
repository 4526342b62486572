"""The store: ``objects/`` by digest, ``steps/`` by key, ``runs/`` by id. Files are the only truth."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import JSON, digest_of_file, pretty_json
from hwopt.errors import ConfigError, LockHeldError
from hwopt.plugins import did_you_mean
from hwopt.store.atomic import copy_file, explained, write_text

_ABANDONED_SECONDS: Final = 30 * 86400


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
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, self.root / "lock") from error
        lock = FileLock(self.root / "lock")
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise LockHeldError(
                "another hwopt run works in this store",
                where=str(self.root),
                fix="wait for it, give --lock-timeout SECONDS, or choose another --store",
            ) from None
        except OSError as error:
            raise explained(error, self.root / "lock") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def workdir(self) -> Iterator[Path]:
        """A folder for one step, gone afterwards; leftovers of killed runs are removed with it."""
        parent = self.root / "work"
        shutil.rmtree(parent, ignore_errors=True)
        try:
            parent.mkdir(parents=True)
        except OSError as error:
            raise explained(error, parent) from error
        with tempfile.TemporaryDirectory(dir=parent) as name:
            yield Path(name)

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
            for old in parent.iterdir():  # abandoned: nobody came back for it
                if time.time() - old.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
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
        digest = digest_of_file(path)
        place = self.object_path(digest)
        if not place.is_file() or digest_of_file(place) != digest:
            copy_file(path, place)
        return Artifact(kind=kind, digest=digest, bytes=path.stat().st_size, path=place)

    def commit(
        self,
        key: str,
        label: str,
        artifacts: Mapping[str, Artifact],
        facts: Mapping[str, JSON],
        seconds: float,
        inputs: Mapping[str, str],
    ) -> None:
        """Record that a step is finished; its files are already in ``objects/``, ``inputs`` are digests."""
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
        }
        write_text(self._step_path(key), pretty_json(entry))

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

    def _whole(self, artifact: Artifact) -> bool:
        if not artifact.path.is_file():
            return False
        if digest_of_file(artifact.path) == artifact.digest:
            return True
        quarantine = self.root / "quarantine"
        quarantine.mkdir(exist_ok=True)
        artifact.path.replace(quarantine / artifact.path.name)
        return False

    def _step_path(self, key: str) -> Path:
        return self.root / "steps" / (key.partition(":")[2] + ".json")

    def run_folder(self, run: str) -> Path:
        """Where a run's record and reports stand."""
        return self.root / "runs" / run

    def save_record(self, run: str, record: JSON) -> Path:
        """Write the record; it is never changed afterwards."""
        path = self.run_folder(run) / "record.json"
        write_text(path, pretty_json(record))
        return path

    def runs(self) -> list[str]:
        """Ids of all recorded runs, oldest first."""
        return sorted(path.parent.name for path in (self.root / "runs").glob("*/record.json"))

    def record(self, run: str) -> dict[str, Any]:
        """The record of a run; ``latest`` is the newest. ConfigError for an unknown or broken one."""
        known = self.runs()
        if run == "latest" and known:
            run = known[-1]
        matches = [name for name in known if name.startswith(run)] if run else []
        if len(matches) != 1:
            problem = (
                f"no run {run!r} in {self.root}" if not matches else f"{run!r} names {len(matches)} runs"
            )
            raise ConfigError(
                problem, fix=did_you_mean(run, [*known[-10:], "latest"]) if known else "run a pipeline first"
            )
        path = self.run_folder(matches[0]) / "record.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"the record is damaged: {error}", where=str(path)) from None
        if record.get("schema_version") != 1:
            raise ConfigError(
                f"the record has schema_version {record.get('schema_version')}; this hwopt reads 1",
                where=str(path),
                fix="upgrade hwopt",
            )
        return record


def new_run_id(now: datetime | None = None) -> str:
    """Ordered by time, unique within a second by chance of 1 in 16 million."""
    moment = now or datetime.now(UTC)
    return f"{moment:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
