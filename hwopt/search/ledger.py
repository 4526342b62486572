"""The study as it is kept: in Optuna's own storage, so that its dashboard and its tools read it.

SQLite beside the runs for one machine, PostgreSQL or a gRPC proxy for many. Nothing in it is code: samples, values
and outcomes are JSON.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, run_grpc_proxy_server
from optuna.storages import get_storage as cached
from optuna.study import StudyDirection as Direction
from optuna.trial import FrozenTrial, TrialState

from hwopt.core.canonical import JSON, canonical_json
from hwopt.core.crossings import crossing
from hwopt.core.search import Axis
from hwopt.errors import ConfigError, EngineMissingError, StageFailedError
from hwopt.search.job import Outcome, Sample
from hwopt.search.samplers import is_ordered, quiet
from hwopt.search.subject import Subject
from hwopt.search.values import Value

_KEY: Final = "hwopt"
_BUSY_SECONDS: Final = 60
_RACES: Final = 5
_PATIENCE: Final = 60  # times
_PAUSE_SECONDS: Final = 5.0
T = TypeVar("T")
_CONNECT_SECONDS: Final = 5


@dataclass(slots=True, kw_only=True)
class Trial:
    """One version of a search.

    Attributes:
        status: running | ok | infeasible (never trained) | rejected (given up on the way) | failed.
        known: before training; values: after it, of the whole training.
        rungs: share of the training to what halving goes by.
        runs: outcomes by the job's key, so that a resumed search does none twice.
    """

    number: int
    sample: Sample
    status: str = "running"
    reason: str | None = None
    known: dict[str, Value] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    rungs: dict[str, Value] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)  # rungs beyond which it was trained
    runs: dict[str, Outcome] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def all_values(self) -> dict[str, Value]:
        """Before training and after it; the latter counts."""
        return {**self.known, **self.values}

    @property
    def cpu_seconds(self) -> float:
        """Of all its trainings."""
        return sum(run.cpu_seconds for run in self.runs.values())

    @property
    def seconds(self) -> float:
        """Of all its jobs."""
        return sum(run.seconds for run in self.runs.values())

    def to_json(self) -> dict[str, JSON]:
        """Plain JSON."""
        return {
            "number": self.number,
            "sample": dict(self.sample),
            "status": self.status,
            "reason": self.reason,
            "known": {k: v.to_json() for k, v in self.known.items()},
            "values": {k: v.to_json() for k, v in self.values.items()},
            "rungs": {k: v.to_json() for k, v in self.rungs.items()},
            "passed": list[JSON](self.passed),
            "runs": {k: v.to_json() for k, v in self.runs.items()},
            "notes": list[JSON](self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trial:
        """The inverse of ``to_json``."""
        values = {
            part: {k: Value.from_json(v) for k, v in value[part].items()}
            for part in ("known", "values", "rungs")
        }
        runs = {k: Outcome.from_json(v) for k, v in value["runs"].items()}
        lists = {part: list(value[part]) for part in ("notes", "passed")}
        return cls(**{**value, **values, **lists, "runs": runs})


class Ledger:
    """The trials of one study, in a storage."""

    def __init__(
        self, storage: BaseStorage, name: str, subject: Subject, *, identity: Mapping[str, JSON]
    ) -> None:
        quiet()
        self.storage, self.name, self.subject = storage, name, subject
        directions = [Direction.MAXIMIZE if o.rises else Direction.MINIMIZE for o in subject.objectives]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            kept = self.study.user_attrs.get(_KEY)
            if kept is None:
                self.study.set_metric_names([str(o.metric) for o in subject.objectives])
                self.study.set_user_attr(_KEY, canonical_json(dict(identity)))
                kept = canonical_json(dict(identity))
        agree(json.loads(str(kept)), identity, f"the study {name!r}")

    def trials(self) -> list[Trial]:
        """All, by number; those that were begun and not finished are running."""
        found = []
        for frozen in patient(lambda: self.study.get_trials(deepcopy=False)):
            text = frozen.user_attrs.get(_KEY)
            if text is None:
                continue
            trial = Trial.from_json({**json.loads(text), "number": frozen.number})
            if frozen.state is TrialState.RUNNING and trial.status != "running":
                self.finish(trial)  # a kill came between its numbers and its state
            found.append(trial)
        return found

    def begin(self, sample: Sample) -> Trial:
        """A new trial, running; it has its number from the storage."""
        trial = Trial(number=-1, sample=sample)
        axes = self.subject.settings.space
        template = FrozenTrial(
            number=-1,  # the storage numbers it
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            values=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={n: _shown(axes[n], v) for n, v in sample.items()},
            distributions={n: _distribution(axes[n]) for n in sample},
            user_attrs={_KEY: canonical_json(trial.to_json())},
            system_attrs={},
            intermediate_values={},
        )
        trial_id = created(self.storage, self.study._study_id, template)
        trial.number = patient(lambda: self.storage.get_trial_number_from_id(trial_id))
        return trial

    def note(self, trial: Trial) -> None:
        """Keep what is known of a running trial so far."""
        text = canonical_json(trial.to_json())
        patient(lambda: self.storage.set_trial_user_attr(self._id(trial), _KEY, text))

    def finish(self, trial: Trial) -> None:
        """Keep a trial for good, in Optuna's words too."""
        patient(lambda: self._finish(trial))

    def _finish(self, trial: Trial) -> None:
        trial_id = self._id(trial)
        if self.storage.get_trial(trial_id).state.is_finished():
            return  # done before, by a call whose answer was lost
        self.note(trial)
        self.storage.set_trial_user_attr(trial_id, "status", trial.status)
        if trial.reason:
            self.storage.set_trial_user_attr(trial_id, "reason", trial.reason)
        handle = optuna.trial.Trial(self.study, trial_id)
        there = handle.constraints
        for name, excess in self.subject.excesses(trial.all_values).items():
            if math.isfinite(excess) and name not in there:
                handle.set_constraint(name, excess)
        for place, value in enumerate(trial.rungs.values()):
            self.storage.set_trial_intermediate_value(trial_id, place, value.estimate)
        crossing("search.told")
        values = [trial.all_values.get(o.metric) for o in self.subject.objectives]
        if trial.status == "ok" and all(v is not None for v in values):
            state, numbers = TrialState.COMPLETE, [v.estimate for v in values if v is not None]
        elif trial.status == "failed":
            state, numbers = TrialState.FAIL, None
        else:
            state, numbers = TrialState.PRUNED, None
        self.storage.set_trial_state_values(trial_id, state=state, values=numbers)

    def attribute(self, name: str, *, patiently: bool = True) -> Any:
        """A fact of the study; None for nothing."""

        def ask() -> Mapping[str, Any]:
            return self.storage.get_study_user_attrs(self.study._study_id)

        text = (patient(ask) if patiently else ask()).get(name)
        return None if text is None else json.loads(text)

    def set_attribute(self, name: str, value: JSON, *, patiently: bool = True) -> None:
        """Keep a fact of the study."""

        def tell() -> None:
            self.storage.set_study_user_attr(self.study._study_id, name, canonical_json(value))

        patient(tell) if patiently else tell()

    def _id(self, trial: Trial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, trial.number)


def patient(call: Callable[[], T]) -> T:
    """A call to the storage; where it is away for a moment, again, for a few minutes.

    Raises:
        StageFailedError: it stays away.
    """
    for again in range(_PATIENCE, -1, -1):
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            if again == 0:
                raise StageFailedError(
                    f"the storage went away: {(str(error.__cause__ or error) or 'no answer').splitlines()[0]}",
                    fix="start it again; the same command goes on",
                ) from None
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError


def created(storage: BaseStorage, study_id: int, template: FrozenTrial) -> int:
    """A new trial's id. Where an answer is lost, the trial that was made is found by its mark: none is made twice."""
    mark = secrets.token_hex(8)
    template.user_attrs = {**template.user_attrs, "mark": mark}
    tried: list[bool] = []

    def create() -> int:
        known = storage.get_all_trials(study_id, deepcopy=False) if tried else ()
        there = next((t._trial_id for t in known if t.user_attrs.get("mark") == mark), None)
        tried.append(True)
        return storage.create_new_trial(study_id, template_trial=template) if there is None else there

    return patient(create)


def is_away(error: Exception) -> bool:
    """Whether an error says that the storage, or the server before it, does not answer just now."""
    if isinstance(error, StorageInternalError):
        return True
    code = getattr(error, "code", None)  # gRPC is optional, and says so in a status
    if not any(kind.__name__ == "RpcError" for kind in type(error).__mro__) or not callable(code):
        return False
    return getattr(code(), "name", "") in {"UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED"}


def agree(kept: Mapping[str, Any], mine: Mapping[str, JSON], what: str) -> None:
    """ConfigError where two sides of a search are not the same program on the same question."""
    words = {
        "profile": "profile",
        "data": "data",
        "code": "code of the model",
        "machine": "machine, and its times are compared",
        "hwopt": "version of hwopt",
        "optuna": "version of Optuna",
    }
    different = [name for name in words if kept.get(name) != mine.get(name)]
    if different:
        said = "; ".join(
            f"another {words[n]}"
            + (
                ""
                if str(kept.get(n)).startswith("sha256:")
                else f" ({kept.get(n)} there, {mine.get(n)} here)"
            )
            for n in different
        )
        raise ConfigError(
            f"{what} was begun with {said}",
            fix="give another --study NAME"
            if different[0] in {"profile", "data", "code", "machine"}
            else "install the same versions on every machine, or give another --study NAME",
        )


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage that ``--storage`` names; a file beside the runs where it names none.

    ``sqlite:///FILE``, ``postgresql://USER@HOST/DATABASE``, or ``grpc://HOST:PORT``.

    Raises:
        ConfigError: no such kind of storage, or it cannot be reached.
        EngineMissingError: its driver is not installed.
    """
    quiet()
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder.resolve() / 'search.db'}"
    try:
        parts = urlsplit(url)
        kind, port = parts.scheme.partition("+")[0], parts.port
    except ValueError as error:
        raise ConfigError(f"the address of the storage cannot be read: {error}", where="--storage") from None
    if kind == "grpc":
        return _proxy(parts.hostname or "localhost", port or 13000)
    if kind in {"postgresql", "postgres"}:
        url = "postgresql+psycopg" + url[len(parts.scheme) :]
        options: dict[str, Any] = {
            "connect_args": {"connect_timeout": _CONNECT_SECONDS},
            "pool_pre_ping": True,
        }
    elif kind == "sqlite":
        options = {"connect_args": {"timeout": _BUSY_SECONDS}}
    else:
        raise ConfigError(
            f"{hidden(url)!r} is no storage that a search can use",
            where="--storage",
            fix="write postgresql://USER@HOST/DATABASE, sqlite:///FILE or grpc://HOST:PORT",
        )
    import sqlalchemy.exc as broken

    try:
        for again in range(_RACES, -1, -1):
            try:
                storage = RDBStorage(url, engine_kwargs=options)
                break
            except broken.DatabaseError as error:
                # Two processes may find an empty database at once; one of them made its tables, and both go on.
                if again == 0 or "exist" not in str(error.orig):
                    raise
                time.sleep(0.5)
        if kind == "sqlite":
            _serialize(storage)
        return cached(storage)
    except ImportError:
        raise EngineMissingError(
            "PostgreSQL's driver is not installed", where="--storage", fix="pip install 'hwopt[postgresql]'"
        ) from None
    except (broken.OperationalError, broken.DatabaseError) as error:
        first = str(error.orig).strip().splitlines()[0]
        raise ConfigError(
            f"the storage {hidden(url)} cannot be reached: {first}",
            where="--storage",
            fix="start the server, and check host, port, database and user; passwords belong into PGPASSFILE",
        ) from None
    except broken.ArgumentError as error:
        raise ConfigError(f"{hidden(url)!r} is no address: {error}", where="--storage") from None
    except RuntimeError as error:  # tables of another Optuna
        raise ConfigError(
            f"the storage was made by another Optuna: {str(error).splitlines()[0]}",
            where="--storage",
            fix="install the same versions on every machine, or use another database",
        ) from None


def close_storage(storage: BaseStorage) -> None:
    """Give back the connections of a storage."""
    behind = getattr(storage, "_backend", storage)
    if isinstance(behind, RDBStorage):
        behind.engine.dispose()


def _proxy(host: str, port: int) -> BaseStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proxy = GrpcStorageProxy(host=host, port=port)
            proxy.wait_server_ready(timeout=_CONNECT_SECONDS)
    except ImportError:
        raise EngineMissingError(
            "gRPC is not installed", where="--storage", fix="pip install 'hwopt[grpc]'"
        ) from None
    except ConnectionError:
        raise ConfigError(
            f"no storage server answers at {host}:{port}",
            where="--storage",
            fix="start one: hwopt search-server --storage postgresql://… , and check host and port",
        ) from None
    return proxy


def _serialize(storage: RDBStorage) -> None:
    """Let SQLite's writers wait for each other: without it, two processes may claim one job."""
    from sqlalchemy import event

    engine = storage.engine

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()


def hidden(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    shown = url if parts.password is None else url.replace(f":{parts.password}@", ":***@")
    return re.sub(r"((?:password|passwd|pwd)=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


def _shown(axis: Axis, value: JSON) -> Any:
    """A value as Optuna's tools show it: numbers as numbers."""
    return value if axis.one_of is None or is_ordered(axis) else canonical_json(value)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.one_of is not None and is_ordered(axis):
        return FloatDistribution(float(axis.one_of[0]), float(axis.one_of[-1]))
    if axis.one_of is not None:
        return CategoricalDistribution([canonical_json(v) for v in axis.one_of])
    low, high = axis.ends
    if axis.integers is not None or axis.log_integers is not None:
        return IntDistribution(int(low), int(high), log=axis.log_integers is not None)
    return FloatDistribution(low, high, log=axis.log is not None)


def importances(trials: Sequence[Trial], subject: Subject) -> dict[str, float]:
    """How much of the first objective each axis explains; empty where there are too few trials.

    Reference:
        Watanabe et al., IJCAI 2023 (PED-ANOVA).
    """
    first = subject.objectives[0]
    done = [t for t in trials if t.status == "ok" and first.metric in t.all_values]
    if len(done) < 4:
        return {}
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize" if first.rises else "minimize")
        axes = subject.settings.space
        for trial in done:
            study.add_trial(
                optuna.trial.create_trial(
                    value=trial.all_values[first.metric].estimate,
                    params={n: _shown(axes[n], v) for n, v in trial.sample.items()},
                    distributions={n: _distribution(axes[n]) for n in trial.sample},
                )
            )
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError):
            return {}


def serve(url: str, folder: Path, host: str, port: int) -> None:
    """Hand a storage on to workers over gRPC, until interrupted. There is no password: bind to what you trust.

    Raises:
        EngineMissingError: gRPC is not installed. ConfigError: the storage, or the port is taken.
    """
    behind = open_storage(url, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run_grpc_proxy_server(behind, host=host, port=port)
        except ImportError:
            raise EngineMissingError("gRPC is not installed", fix="pip install 'hwopt[grpc]'") from None
        except RuntimeError as error:
            raise ConfigError(
                f"{host}:{port} cannot be served: {error}", where="--port", fix="choose another"
            ) from None
