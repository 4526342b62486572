"""Every exception of hwopt, the shape of its message, and its exit code.

Exit codes (also in ``docs/cli.md``): 0 done or PASS, 1 gate FAIL, 2 usage or config error,
3 INCONCLUSIVE, 4 environment or engine missing, 5 stage failed, 6 unsafe input refused, 7 lock held,
8 resource limit, 70 internal error, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong: what, where (``file:line``), and what mends it."""

    problem: str
    where: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        lines = [f"error: {self.problem}"]
        if self.where:
            lines.append(f"  at:  {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class HwoptError(Exception):
    """Base of all errors that a user can act on."""

    exit_code: ClassVar[int] = 70

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problems: tuple[Problem, ...] = (Problem(problem=problem, where=where, fix=fix),)
        super().__init__(problem)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> HwoptError:
        """One exception that carries several problems, reported together."""
        first, *_ = problems
        error = cls(first.problem, where=first.where, fix=first.fix)
        error.problems = tuple(problems)
        return error

    def at(self, where: str | None) -> HwoptError:
        """The same error, with the place filled in where it was missing."""
        return type(self).of(
            [Problem(problem=p.problem, where=p.where or where, fix=p.fix) for p in self.problems]
        )

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)


class ConfigError(HwoptError):
    """The profile, an option or the data does not say something that can be run."""

    exit_code: ClassVar[int] = 2


class EngineMissingError(HwoptError):
    """A library, a driver or a device that the request needs is not here."""

    exit_code: ClassVar[int] = 4


class StageFailedError(HwoptError):
    """A stage ran and could not give its result."""

    exit_code: ClassVar[int] = 5


class OutOfMemoryError(StageFailedError):
    """A stage asked for more memory than it may have; smaller candidates can go on."""

    exit_code: ClassVar[int] = 8


class FileTooLargeError(StageFailedError):
    """A stage wrote a file beyond the limit that the user set; smaller candidates can go on."""

    exit_code: ClassVar[int] = 8


class UnsafeInputError(HwoptError):
    """A file from outside was refused before any library touched it."""

    exit_code: ClassVar[int] = 6


class LockHeldError(HwoptError):
    """Another hwopt process works in the same store."""

    exit_code: ClassVar[int] = 7


class ResourceLimitError(HwoptError):
    """Disk, memory or time ran out."""

    exit_code: ClassVar[int] = 8
