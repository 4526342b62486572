"""This machine, one job at a time: what is timed is timed alone."""

from __future__ import annotations

from hwopt.search.job import Job, Outcome
from hwopt.search.perform import Here


class HereCrew:
    """Does each job when its outcome is asked for."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._jobs: list[Job] = []

    def room(self) -> int:
        """One."""
        return 1 - len(self._jobs)

    def submit(self, job: Job) -> None:
        """Keep it for ``wait``."""
        self._jobs.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Do the job that waits."""
        if not self._jobs:
            return []
        job = self._jobs[0]
        outcome = self._here.perform(job)
        del self._jobs[0]
        return [(job, outcome)]

    def withdraw(self) -> list[Job]:
        """Nothing: the job that was submitted is the one that is done next."""
        return []

    def close(self) -> None:
        """End the worker process."""
        self._here.close()
