"""Who does the jobs of a search. A crew is one file; ``CREWS`` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from hwopt.search.job import Job, Outcome

CREWS: Final[Mapping[str, str]] = {
    "here": "hwopt.search.crews.here:HereCrew",
    "queue": "hwopt.search.crews.queue:QueueCrew",
    "ray": "hwopt.search.crews.ray:RayCrew",
}


class Crew(Protocol):
    """Takes jobs and gives outcomes; a job whose worker was lost is done again before it counts as failed."""

    def room(self) -> int:
        """How many more jobs make sense now; 0 while all are busy."""
        ...

    def submit(self, job: Job) -> None:
        """Have a job done."""
        ...

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """Outcomes since the last call; an empty list after ``seconds`` without one."""
        ...

    def withdraw(self) -> list[Job]:
        """Take back what nobody has begun."""
        ...

    def close(self) -> None:
        """The search is over."""
        ...
