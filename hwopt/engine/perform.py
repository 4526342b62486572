"""One stage, called: by the worker process, or in this one."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from hwopt.core.artifact import Artifact, Kind
from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.choices import Choice
from hwopt.core.crossings import crossing
from hwopt.core.dataset import Dataset
from hwopt.core.hardware import HardwareProfile
from hwopt.core.search import Holdout
from hwopt.core.settings import Settings
from hwopt.core.stage import Progress, StageContext, StageFunction, StageResult, StageSpec
from hwopt.data.holdout import held_out
from hwopt.data.load import load_dataset
from hwopt.errors import FileTooLargeError, HwoptError, ResourceLimitError, StageFailedError
from hwopt.plugins import call_factory, load_reference, resolve, user_modules
from hwopt.processes import Child, Limits, explained
from hwopt.tracking.ledger import FileLedger
from hwopt.tracking.sink import Sink, SinkSpec

LEDGER: Final = "ledger.jsonl"
_PATIENCE: Final = 30.0  # seconds
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that a stage is told, as values that can be sent to another process."""

    stage: str
    label: str
    title: str  # for trackers
    config: Settings
    hardware: HardwareProfile | None
    inputs: Mapping[str, Artifact]
    seed: int
    threads: int
    model: Mapping[str, JSON]
    data: Choice
    data_where: str | None
    holdout: Holdout | None
    root: Path  # where the user's modules are looked for
    workdir: Path
    keep: Path | None = None
    track: Sequence[Choice] = ()
    source_facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "stage": self.stage,
            "label": self.label,
            "title": self.title,
            # What was not set stays unset: some settings are refused only where the user wrote them.
            "config": self.config.model_dump(mode="json", exclude_unset=True),
            "hardware": None if self.hardware is None else self.hardware.to_json(),
            "inputs": {
                port: {"kind": a.kind.value, "digest": a.digest, "bytes": a.bytes, "path": str(a.path)}
                for port, a in self.inputs.items()
            },
            "seed": self.seed,
            "threads": self.threads,
            "model": dict(self.model),
            "data": self.data.to_json(),
            "data_where": self.data_where,
            "holdout": None if self.holdout is None else self.holdout.to_json(),
            "root": str(self.root),
            "workdir": str(self.workdir),
            "keep": None if self.keep is None else str(self.keep),
            "track": [choice.to_json() for choice in self.track],
            "source_facts": dict(self.source_facts),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        """The inverse of ``to_json``."""
        spec: StageSpec = resolve("stage", value["stage"])
        hardware = value["hardware"]
        return cls(
            stage=value["stage"],
            label=value["label"],
            title=value["title"],
            config=spec.config.model_validate_json(canonical_json(value["config"])),
            hardware=None
            if hardware is None
            else HardwareProfile.model_validate_json(canonical_json(hardware)),
            inputs={
                port: Artifact(
                    kind=Kind(a["kind"]), digest=a["digest"], bytes=a["bytes"], path=Path(a["path"])
                )
                for port, a in value["inputs"].items()
            },
            seed=value["seed"],
            threads=value["threads"],
            model=value["model"],
            data=Choice.from_json(value["data"]),
            data_where=value["data_where"],
            holdout=None if value["holdout"] is None else Holdout.model_validate(value["holdout"]),
            root=Path(value["root"]),
            workdir=Path(value["workdir"]),
            keep=None if value["keep"] is None else Path(value["keep"]),
            track=tuple(Choice.from_json(choice) for choice in value["track"]),
            source_facts=value["source_facts"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a stage left: files by port, facts, and the file of its ledger if it wrote one."""

    result: StageResult
    ledger: Path | None


def perform(task: Task, say: Progress, data: Callable[[], Dataset] | None = None) -> Done:
    """Run the stage of a task here; what it and its libraries raise becomes an error of ours."""
    spec: StageSpec = resolve("stage", task.stage)
    load = data or loader(task.data, task.data_where, task.root, task.holdout)
    book = task.workdir / LEDGER if task.keep is None else task.keep / LEDGER
    with (
        _alone(task.keep),
        foreign_code(None, str(task.workdir)),
        opened(book, task.track, task.title, task.config, say) as ledger,
    ):
        context = StageContext(
            workdir=task.workdir,
            seed=task.seed,
            threads=task.threads,
            hardware=task.hardware,
            model=task.model,
            data=load,
            progress=say,
            source_facts=task.source_facts,
            import_root=task.root,
            keep=task.keep,
            ledger=ledger,
        )
        crossing("stage.begun")
        with foreign_code(task.root, str(task.workdir)):
            function: StageFunction = load_reference(spec.run)
            load_reference("torch:set_num_threads")(task.threads)
            result = function(context, task.inputs, task.config)
        for port, path in result.files.items():
            if port not in spec.produces or not path.resolve().is_relative_to(task.workdir.resolve()):
                raise StageFailedError(f"the stage {task.stage} gave {port!r} outside of what it may give")
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            ledger.artifact(path, port)
        crossing("stage.ended")
    return Done(result=result, ledger=book if book.stat().st_size else None)


@contextmanager
def _alone(keep: Path | None) -> Iterator[None]:
    """What a step resumes from has one writer: the worker of a killed run may need a moment to notice."""
    if keep is None:
        yield
        return
    try:
        with FileLock(keep / "lock", timeout=_PATIENCE):
            yield
    except Timeout:
        raise StageFailedError(
            "a worker of an earlier run still works at this step", where=str(keep), fix="end that process"
        ) from None


class Operations:
    """The worker's side: see ``hwopt.processes``."""

    def __init__(self) -> None:
        self._data: dict[str, Callable[[], Dataset]] = {}

    def step(self, asked: Mapping[str, Any], say: Progress) -> dict[str, Any]:
        """Run one stage."""
        task = Task.from_json(asked["task"])
        holdout = None if task.holdout is None else task.holdout.to_json()
        kept = canonical_json([task.data.to_json(), str(task.root), holdout])
        if kept not in self._data:
            # One at a time: every fold of a search is a copy of the whole.
            self._data = {}
            self._data[kept] = loader(task.data, task.data_where, task.root, task.holdout)
        done = perform(task, say, self._data[kept])
        return {
            "files": {port: str(path) for port, path in done.result.files.items()},
            "facts": dict(done.result.facts),
            "ledger": None if done.ledger is None else str(done.ledger),
        }


class Worker:
    """A worker process for steps, started when it is first needed and anew after a crash.

    Args:
        isolated: False runs stages in this process, for debuggers.
        secrets: whether variables that look like passwords reach the stages, as trackers and hubs need.
    """

    def __init__(self, threads: int, limits: Limits, *, isolated: bool = True, secrets: bool = False) -> None:
        self._threads, self._limits, self._secrets = threads, limits, secrets
        self.isolated = isolated
        self._child: Child | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def step(self, task: Task, say: Progress) -> Done:
        """Run one stage; StageFailedError where the process died of it."""
        if not self.isolated:
            return perform(task, say)
        with self._lock:
            if self._stopped:
                raise StageFailedError("the run was stopped")
            if self._child is None or not self._child.alive:
                self._close()
                self._child = Child(
                    "hwopt.engine.perform",
                    threads=self._threads,
                    limits=self._limits,
                    secrets=self._secrets,
                    what="the worker",
                )
            child = self._child
        answer = child.ask("step", say=say, label=task.label, task=task.to_json())
        ledger = answer["ledger"]
        return Done(
            result=StageResult(
                files={port: Path(path) for port, path in answer["files"].items()}, facts=answer["facts"]
            ),
            ledger=None if ledger is None else Path(ledger),
        )

    def stop(self) -> None:
        """End a running step at once, from another thread; no other begins."""
        with self._lock:
            self._stopped = True
            if self._child is not None and self._child.alive:
                self._child.kill()

    def end(self) -> None:
        """Ask a running step to end, from any thread; it keeps what it resumes from, and no other begins."""
        with self._lock:
            self._stopped = True
            if self._child is not None and self._child.alive:
                self._child.end()

    def close(self) -> None:
        """No more steps."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def loader(
    choice: Choice, where: str | None, root: Path, holdout: Holdout | None = None
) -> Callable[[], Dataset]:
    """The data of a profile, loaded on the first call; errors carry their place."""

    @cache
    def load() -> Dataset:
        try:
            whole = load_dataset(
                choice, lambda reference, options: call_factory(reference, root, {}, options)
            )
            return whole if holdout is None else held_out(whole, holdout)
        except HwoptError as error:
            raise error.at(where) from None

    return load


@contextmanager
def opened(
    path: Path, track: Sequence[Choice], run: str, config: Settings, progress: Progress
) -> Iterator[FileLedger]:
    """A ledger, with trackers where the stage trains; they are told how it ended."""
    ledger = FileLedger(path, make_sinks(track if hasattr(config, "optimizer") else (), progress), progress)
    ledger.start(run, config.to_json())
    status = "failed"
    try:
        yield ledger
        status = "ok"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        ledger.close(status)


def make_sinks(chosen: Sequence[Choice], progress: Progress) -> dict[str, Sink]:
    """The trackers of a profile; one whose library is missing is left out, and that is said."""
    sinks: dict[str, Sink] = {}
    for choice in chosen:
        name = str(choice.name)
        spec: SinkSpec = resolve("tracker", name)
        settings = spec.settings.model_validate_json(canonical_json(dict(choice.options)))
        try:
            sinks[name] = load_reference(spec.make)(settings)
        except ImportError as error:
            progress(f"tracker {name}: left out, {error}; pip install 'hwopt[{spec.extra}]'")
        except Exception as error:  # a tracker must not cost a run
            progress(f"tracker {name}: left out, {type(error).__name__}: {error}")
    return sinks


@contextmanager
def foreign_code(root: Path | None, where: str | None = None) -> Iterator[None]:
    """The boundary to libraries and to the user's modules: what they raise becomes a failed stage.

    One broken candidate must not end the run, and nobody's stack trace is a message.
    """
    try:
        with user_modules(root):
            yield
    except (HwoptError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        number = _os_number(error)
        if number in _FULL:
            fix = "free space and run again"
            raise ResourceLimitError("the disk is full", where=where, fix=fix) from error
        if number == errno.EFBIG:
            fix = "raise limits.file_gb, or make the version smaller"
            raise FileTooLargeError("a file grew beyond limits.file_gb", where=where, fix=fix) from error
        if isinstance(error, OSError):
            raise StageFailedError(f"{type(error).__name__}: {error}") from error
        raise explained(error) from error


def _os_number(error: Exception) -> int | None:
    """The operating system's number of an error; libraries in Rust, such as safetensors, write it into their text."""
    if isinstance(error, OSError):
        return error.errno
    said = _OS_ERROR.search(str(error))
    return int(said[1]) if said else None
