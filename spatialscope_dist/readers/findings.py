"""Problems and warnings gathered over all inputs, so that a person sees them together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from spatialscope_dist.errors import BadInput, Problem

_NAMED = 5


@dataclass
class Findings:
    """What is wrong (refused) and what is odd (told)."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, where: str, found: str, expected: str, remedy: str) -> None:
        """Note one thing that cannot be used."""
        self.problems.append(Problem(where, found, expected, remedy))

    def warn(self, text: str) -> None:
        """Note one thing a person should know."""
        self.warnings.append(text)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the problems of a BadInput raised inside, and go on."""
        try:
            yield
        except BadInput as error:
            self.problems.extend(problem for problem in error.problems if problem not in self.problems)


def some(names: Iterable[str]) -> str:
    """Return the first few names as text, and how many more there are.

    Examples
    --------
    >>> some(["a", "b"])
    'a, b'
    """
    listed = [str(name) for name in names]
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
