"""Named places at which a run can be cut off, so that tests can prove that it survives.

``HWOPT_TEST_CRASH_AT=name`` or ``name:3`` kills the process with SIGKILL where it passes the place, for the third time.
Unset, which is everywhere but in tests, passing one costs a comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "HWOPT_TEST_CRASH_AT"
NAMES: Final = (
    "run.locked",  # the store is ours
    "run.begun",  # the run has a folder and an event log
    "step.begun",
    "stage.begun",  # in the worker
    "stage.ended",  # in the worker, its files are written
    "step.worked",  # the worker has answered
    "write.temporary",  # a temporary file is filled
    "write.synced",  # and on the disk
    "write.renamed",  # and at its place
    "step.stored",  # all files of a step are objects
    "step.committed",
    "run.judged",
    "run.recorded",
    "run.indexed",
)
SEARCH_NAMES: Final = (
    "search.proposed",
    "search.begun",  # the trial is in the ledger
    "search.worked",  # a job's outcome is here
    "search.noted",  # and in the ledger
    "search.decided",
    "search.told",  # its numbers are in the ledger, its state is not
    "search.finished",
    "worker.claimed",
    "worker.worked",
    "worker.told",
)
_passed: dict[str, int] = {}


def crossing(name: str) -> None:
    """Pass a named place."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, _, count = wanted.partition(":")
    if place == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] >= int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
