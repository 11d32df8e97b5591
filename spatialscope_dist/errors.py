"""Errors a user can act on: what was found, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input, in the three parts every message has."""

    where: str
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}. {self.remedy}"


class SpatialScopeError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class BadInput(SpatialScopeError):
    """Inputs that cannot be used; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(f"- {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[BadInput], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


class RefusedByPlan(SpatialScopeError):
    """The projected memory or disk does not fit; nothing was started."""

    exit_code = 3


class StageFailed(SpatialScopeError):
    """A stage could not finish; what it had committed is kept."""

    exit_code = 1


class ClusterLost(StageFailed):
    """The scheduler went away: nothing more can run; what was committed is kept."""


class StoreError(SpatialScopeError):
    """The output folder cannot be written or holds something unexpected."""

    exit_code = 1
