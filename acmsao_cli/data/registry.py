"""What a data format is, and those there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from acmsao_cli.data.base import Example, Problem
from acmsao_cli.data.source import Source

# The generator gets the source and the recipe's data section (ImageData or TextData).
Reader = Callable[[Source, Any], Iterator[Example | Problem]]


@dataclass(frozen=True)
class DataFormat:
    """One way a data set can lie on disk.

    `wants` says in a few words what is accepted; `matches` looks at a source and tells whether it
    is of this format; `read` yields its examples and what is wrong with the rest. `settings` are
    keys of the data section that no other format of its kind knows.
    """

    name: str
    kind: Literal["images", "text"]
    wants: str
    matches: Callable[[Source], bool]
    read: Reader
    settings: tuple[str, ...] = ()


FORMATS: dict[str, DataFormat] = {}


def data_format(
    name: str,
    *,
    kind: Literal["images", "text"],
    wants: str,
    matches: Callable[[Source], bool],
    settings: tuple[str, ...] = (),
) -> Callable[[Reader], Reader]:
    """Register a generator as the data format `name`."""

    def register(read: Reader) -> Reader:
        FORMATS[name] = DataFormat(name, kind, wants, matches, read, settings)
        return read

    return register
