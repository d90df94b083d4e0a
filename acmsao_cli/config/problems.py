"""Mistakes in a request, collected: all are told at once, as one ConfigError."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acmsao_cli.errors import ConfigError

TOLD_AT_ONCE = 10


@dataclass(frozen=True)
class Problem:
    """What is wrong, where (a file and line, or the argument), and how to mend it."""

    message: str
    place: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.message} in {self.place}" if self.place else self.message


def refuse(problems: Sequence[Problem]) -> None:
    """Raise a ConfigError that names every problem; do nothing if there is none."""
    problems = list(dict.fromkeys(problems))
    if not problems:
        return
    if len(problems) == 1:
        raise ConfigError(str(problems[0]), hint=problems[0].hint)
    told = [
        f"  {problem}; {problem.hint}" if problem.hint else f"  {problem}"
        for problem in problems[:TOLD_AT_ONCE]
    ]
    if len(problems) > TOLD_AT_ONCE:
        told.append(f"  and {len(problems) - TOLD_AT_ONCE} more")
    raise ConfigError("\n".join([f"{len(problems)} mistakes", *told]))
