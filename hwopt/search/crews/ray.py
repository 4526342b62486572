"""Machines of a Ray cluster: every job is a task that needs a resource named after the kind of machine.

What travels is JSON and the name of a function of this package; hwopt is installed on every node in one version.
Start nodes with ``ray start --resources='{"x86-avx2": 1}'``, where the number is how many jobs the machine may do at
once: 1 where anything is timed. Ray tells when a node or a worker is lost; the job is then given to another.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hwopt.config.profile import checked
from hwopt.config.yaml_text import parse
from hwopt.core.canonical import canonical_json
from hwopt.core.profile import HOST_CPU
from hwopt.core.progress import silent
from hwopt.core.stage import Progress
from hwopt.engine.prepare import host_profile
from hwopt.errors import ConfigError, EngineMissingError, HwoptError
from hwopt.search.crews.queue import own_store
from hwopt.search.job import Job, Outcome
from hwopt.search.ledger import Ledger, agree
from hwopt.search.perform import Here
from hwopt.search.session import identity_of
from hwopt.search.subject import Subject
from hwopt.store.store import Store

_ATTEMPTS: Final = 3  # workers that may be lost over a job


@dataclass(slots=True)
class _Out:
    """A job that is with the cluster."""

    job: Job
    attempt: int


class RayCrew:
    """The lead's side.

    Raises:
        EngineMissingError: Ray is not installed, or no cluster answers.
        ConfigError: no node is of the target's kind.
    """

    def __init__(self, ledger: Ledger, subject: Subject, store: Path, progress: Progress = silent) -> None:
        self._progress, self._said = progress, False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network but the user's own
        try:
            import ray
        except ImportError:
            raise EngineMissingError(
                "Ray is not installed", where="--crew ray", fix="pip install 'hwopt[ray]'"
            ) from None
        self._ray = ray
        address = os.environ.get("RAY_ADDRESS", "auto")
        more = _reachable(address)
        self._stdout, sys.stdout = (
            sys.stdout,
            sys.stderr,
        )  # Ray's own lines would stand between those of our answer
        try:
            ray.init(
                address=address, logging_level=logging.ERROR, log_to_driver=False, namespace="hwopt", **more
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineMissingError(
                f"no Ray cluster answers: {str(error).splitlines()[0]}",
                where="--crew ray",
                fix="start one with `ray start --head`, and set RAY_ADDRESS where it is not on this machine",
            ) from None
        self._tag = kind_of(subject)
        self._out: dict[Any, _Out] = {}
        if not ray.cluster_resources().get(self._tag):
            self.close()
            raise ConfigError(
                f"no node of the Ray cluster is a {self._tag}",
                where="--crew ray",
                fix=f"start such a machine's node with ray start --resources='{json.dumps({self._tag: 1})}'",
            )
        self._task = ray.remote(max_retries=0, num_cpus=0, resources={self._tag: 1})(work)
        document: Any = subject.profile.value
        self._given = canonical_json(
            {
                "path": str(subject.profile.path.resolve()),
                "value": document,
                "text": subject.profile.text,
                "store": str(store.resolve()),
                "identity": ledger.attribute("hwopt"),
                "machine": subject.machine(),
            }
        )

    @classmethod
    def lead(
        cls, ledger: Ledger, subject: Subject, store: Path, lease_seconds: float, progress: Progress
    ) -> RayCrew:
        """For ``hwopt.search.session``; Ray has its own signs of life."""
        return cls(ledger, subject, store, progress)

    def room(self) -> int:
        """As many jobs as the cluster's nodes of the kind may do at once."""
        return max(1, int(self._ray.cluster_resources().get(self._tag, 0))) - len(self._out)

    def submit(self, job: Job) -> None:
        """Give a job to the cluster."""
        self._put(job, 1)

    def _put(self, job: Job, attempt: int) -> None:
        self._out[self._task.remote(self._given, job.key)] = _Out(job, attempt)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Outcomes, as the cluster brings them."""
        ready, _ = self._ray.wait(list(self._out), num_returns=1, timeout=seconds)
        nobody = not self._ray.cluster_resources().get(self._tag)
        if nobody and not self._said:
            self._progress(f"no node of the Ray cluster is a {self._tag} any more; jobs wait for one")
        self._said = nobody
        found: list[tuple[Job, Outcome]] = []
        for reference in ready:
            out = self._out.pop(reference)
            try:
                answer = json.loads(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                if out.attempt < _ATTEMPTS:
                    self._put(out.job, out.attempt + 1)
                else:
                    # What a task raised stands in its cause; a worker that died has none.
                    cause: BaseException = getattr(error, "cause", None) or error
                    said = f"{type(cause).__name__}: {cause}".splitlines()[0]
                    reason = f"{_ATTEMPTS} workers were lost over it: {said}"
                    found.append((out.job, Outcome(status="failed", reason=reason)))
                continue
            if "refused" in answer:
                raise ConfigError(answer["refused"], where=answer["where"], fix=answer["fix"])
            found.append((out.job, Outcome.from_json(answer)))
        return found

    def withdraw(self) -> list[Job]:
        """Nothing while there are machines of the kind, for Ray does not tell what has begun; else everything."""
        if self._ray.cluster_resources().get(self._tag):
            return []
        for reference in self._out:
            self._ray.cancel(reference, force=True)
        found = [out.job for out in self._out.values()]
        self._out.clear()
        return found

    def close(self) -> None:
        """Take back what is not done, and leave the cluster."""
        for reference in self._out:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()
        sys.stdout = self._stdout


def _reachable(address: str) -> dict[str, Any]:
    """What Ray has to be told besides; it would wait for minutes where nobody listens.

    Raises:
        EngineMissingError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in address:
        return {}
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise EngineMissingError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            where="--crew ray",
            fix="start one with `ray start --head`, and check RAY_ADDRESS",
        ) from None
    if host not in {"127.0.0.1", "localhost"}:
        return {}
    # Ray replaces loopback by another address of the machine, and then waits for itself.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    return {"_node_ip_address": "127.0.0.1"}


def kind_of(subject: Subject) -> str:
    """What a machine must be: the target, or the kind of this one."""
    device = host_profile()
    return subject.target if subject.target != HOST_CPU else device.name if device is not None else HOST_CPU


_HERE: Final[dict[str, Here]] = {}
_OPEN: Final = ExitStack()  # until the process ends


def work(given: str, key: str) -> str:
    """A node's side: one job; its machine's store and worker process serve all jobs of this process."""
    if given not in _HERE:
        try:
            _HERE[given] = _arrive(json.loads(given))
        except HwoptError as error:
            first = error.problems[0]
            return canonical_json(
                {"refused": first.problem, "where": first.where or "--crew ray", "fix": first.fix}
            )
    return canonical_json(_HERE[given].perform(Job.from_json(json.loads(key))).to_json())


def _arrive(asked: Mapping[str, Any]) -> Here:
    path = Path(asked["path"])
    document = parse(asked["text"], path)
    document.value = asked["value"]
    subject = Subject.of(checked(document, asked["text"]))
    if subject.machine() != asked["machine"]:
        raise ConfigError(
            f"{socket.gethostname()} is a {subject.machine()}, and the search is for a {asked['machine']}",
            fix="tag nodes with what they are",
        )
    store = _OPEN.enter_context(own_store(Store(Path(asked["store"]))))
    here = Here(subject=subject, store=store, progress=silent, name=f"{socket.gethostname()}/{os.getpid()}")
    agree(asked["identity"], identity_of(subject, here), "the search")
    return here
