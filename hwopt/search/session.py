"""One search from the profile to the winner's run: what ``hwopt search`` does."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from optuna.storages import BaseStorage

import hwopt
from hwopt.core.canonical import JSON, pretty_json
from hwopt.core.profile import PipelineProfile
from hwopt.core.search import CANDIDATE
from hwopt.core.stage import Progress
from hwopt.engine import pipeline as engine
from hwopt.engine.prepare import code_digest
from hwopt.errors import ConfigError, HwoptError, LockHeldError
from hwopt.plugins import load_reference
from hwopt.report.search import search_page
from hwopt.search.lead import Lead
from hwopt.search.ledger import Ledger, Trial, close_storage, importances, open_storage
from hwopt.search.perform import Here
from hwopt.search.subject import Subject, written
from hwopt.search.versions import best_of, restarted
from hwopt.store.atomic import write_text
from hwopt.store.store import Store

_BEAT_SECONDS: Final = 3.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a search is done, beside what the profile says."""

    study: str | None = None  # its name; None: the profile's
    storage: str | None = None  # address; None: a file in the store
    crew: str = "here"
    seconds: float | None = None
    refit: bool = True  # train the winner on all data and judge it on the test split
    lease_seconds: float = 60.0  # without a sign of life, a worker's job is given to another


def search(
    profile: PipelineProfile,
    store: Store,
    progress: Progress,
    wish: Wish,
    on_record: Callable[[str, dict[str, Any]], None] = lambda run, record: None,
) -> dict[str, Any]:
    """Search, then run the winner; the document that ``--json`` prints, with the run's record in ``record``.

    Raises:
        ConfigError: the profile, the limits or the storage; LockHeldError: another search of that name is led.
    """
    subject = Subject.of(profile)
    if wish.seconds is not None:
        subject = replace(subject, settings=subject.settings.model_copy(update={"seconds": wish.seconds}))
    if wish.crew == "queue" and wish.storage is None:
        raise ConfigError(
            "workers find their jobs in a shared storage", fix="give --storage postgresql://USER@HOST/DB"
        )
    name = wish.study or profile.name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a search's name", where="--study", fix="use letters, digits, dot, dash"
        )
    folder = store.root / "search" / name
    here = Here(subject=subject, store=store, progress=lambda text: progress("    " + text))
    not_run: str | None = None if wish.refit else "it was not asked for"
    if wish.crew == "here":
        here.check(refit=wish.refit)
    elif wish.refit and (obstacle := here.unjudgeable()) is not None:
        not_run = obstacle.problems[0].problem
        progress(f"the winner's run will be left out: {not_run}")
    identity = identity_of(subject, here)
    with _led(folder, name), _opened(wish.storage, store.root / "search") as storage:
        ledger = Ledger(storage, name, subject, identity=identity)
        with leading(ledger, progress, shared=wish.storage is not None) as still_mine:
            crew = (
                load_reference(_crew(wish, ledger))(here)
                if wish.crew == "here"
                else _far_crew(wish, ledger, subject, store, progress)
            )

            def keep(trials: Sequence[Trial]) -> None:
                _keep(folder, lead, None)

            lead = Lead(
                subject=subject,
                ledger=ledger,
                crew=crew,
                progress=progress,
                on_trial=keep,
                stopping=still_mine,
            )
            progress(
                f"search {name}: {lead.proposer.sampler} over {len(subject.settings.space)} axes, "
                f"{subject.settings.trials} trials on {subject.target}; live in {folder / 'report.html'}"
            )
            ledger.set_attribute("closed", None)
            try:
                why = lead.run()
            except (HwoptError, KeyboardInterrupt) as error:  # who looks at the page should not wait for more
                text = "it was interrupted; the same command goes on"
                why = error.problems[0].problem if isinstance(error, HwoptError) else text
                if lead.trials and not isinstance(error, LockHeldError):  # else it is another's page
                    with contextlib.suppress(Exception):
                        _keep(folder, lead, why)
                if isinstance(error, ConfigError):
                    ledger.set_attribute("closed", why)
                raise
            finally:
                crew.close()
            still_mine()
            ledger.set_attribute("closed", why)
        found = _keep(folder, lead, why)
        winner = lead.winner()
        if winner is not None and not_run is None:
            run_id, record = refit(subject, winner, store, progress, on_record)
            found |= {"run": run_id, "record": record}
        elif winner is not None and wish.refit:
            found |= {"not_run": not_run}
    return found


def refit(
    subject: Subject,
    winner: Trial,
    store: Store,
    progress: Progress,
    on_record: Callable[[str, dict[str, Any]], None],
) -> tuple[str, dict[str, Any]]:
    """Train the winner on the whole training split, and look at the test split: once, and after the search."""
    progress(f"the winner is trial {winner.number}; it is trained on all data and judged on the test split")
    best, name = subject.changed(winner.sample), str(winner.sample.get(CANDIDATE, subject.candidate))
    if subject.settings.restarts > 1:
        chain = next(c.chain for c in best.candidates if c.name == name)
        best = restarted(best, name, subject.settings.restarts)
        name = best_of(name, chain, subject.settings.restarts)
    profile = replace(best, name=f"{subject.profile.name}-winner"[:64], ship=name)
    return engine.run(profile, store, progress, reference=subject.profile, on_record=on_record)


def _keep(folder: Path, lead: Lead, why: str | None) -> dict[str, Any]:
    """Write down what is known so far, for those who look while it goes on."""
    found = lead.summary(why)
    found["importance"] = dict[str, JSON](importances(lead.trials, lead.subject))
    write_text(folder / "search.json", pretty_json(found))
    write_text(folder / "report.html", search_page(found))
    winner = lead.winner()
    if winner is not None:
        write_text(folder / "winner.yaml", written(lead.subject, winner.sample, lead.subject.profile.path))
    return found


@contextmanager
def _opened(url: str | None, folder: Path) -> Iterator[BaseStorage]:
    storage = open_storage(url, folder)
    try:
        yield storage
    finally:
        close_storage(storage)


def identity_of(subject: Subject, here: Here) -> dict[str, JSON]:
    """What must be the same wherever a part of the search is done."""
    timed = {"latency_ms", "relative_latency", "speedup"} & subject.metrics(trained=True)
    return {
        "profile": subject.digest,
        "data": here.data_digest(),
        "code": code_digest(subject.profile, subject.profile.path.resolve().parent),
        "machine": subject.machine() if timed else None,
        "hwopt": hwopt.__version__,
        "optuna": importlib.metadata.version("optuna"),
    }


def _crew(wish: Wish, ledger: Ledger) -> str:
    crews = load_reference("hwopt.search.crews:CREWS")
    return str(crews[wish.crew])


def _far_crew(wish: Wish, ledger: Ledger, subject: Subject, store: Store, progress: Progress) -> Any:
    return load_reference(_crew(wish, ledger)).lead(ledger, subject, store.root, wish.lease_seconds, progress)


@contextmanager
def _led(folder: Path, name: str) -> Iterator[None]:
    """One lead a study on this machine; the kernel frees the place of a dead one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise LockHeldError(
            f"another process leads the search {name!r}",
            where=str(folder),
            fix="wait for it, or give another --study",
        ) from None


@contextmanager
def leading(ledger: Ledger, progress: Progress, *, shared: bool) -> Iterator[Callable[[], None]]:
    """One lead a study among all machines: a counter in the study moves while it lives.

    Clocks are not compared: another lead counts as dead once its counter stood still for a while on ours.
    """
    if not shared:  # the lock of the file system is enough
        yield lambda: None
        return
    mine, seen = secrets.token_hex(8), ledger.attribute("lead")
    if seen is not None and not seen.get("over"):
        deadline = time.monotonic() + 3 * _BEAT_SECONDS
        progress("another lead was here; waiting to see whether it lives")
        while time.monotonic() < deadline:
            time.sleep(0.2)
            now = ledger.attribute("lead")
            if now is not None and now.get("over"):
                break
            if now != seen:
                raise LockHeldError(
                    f"the search {ledger.name!r} is led by another process",
                    fix="wait for it, or give another --study",
                )
    ledger.set_attribute("lead", {"id": mine, "beat": 0})
    end, lost = threading.Event(), list[str]()

    def beat() -> None:
        count = 0
        while not end.wait(_BEAT_SECONDS):
            count += 1
            with contextlib.suppress(
                Exception
            ):  # the storage is away for a moment; the lead's own calls say so
                if (ledger.attribute("lead", patiently=False) or {}).get("id") != mine:
                    lost.append("another process has taken the lead")
                    return
                ledger.set_attribute("lead", {"id": mine, "beat": count}, patiently=False)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()

    def still_mine() -> None:
        if lost:
            raise LockHeldError(lost[0], fix="it goes on with this search; this process ends")

    try:
        yield still_mine
    finally:
        end.set()
        thread.join()
        if not lost:
            with contextlib.suppress(Exception):  # else the next lead looks for a sign of life first
                ledger.set_attribute("lead", {"id": mine, "over": True}, patiently=False)
