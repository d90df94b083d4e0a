"""What a data set yields, before any model has seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from acmsao_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageExample:
    """A captioned picture; `open` decodes it to RGB, upright, and raises DataError if it cannot.

    `size` is (height, width) as the header tells, where somebody has looked; `path` is its file, if
    it is one, else `encoded` gives its bytes. `name` is relative to the data set: wherever that
    lies, it stays.
    """

    place: str
    caption: str
    open: Callable[[], Image.Image]
    size: tuple[int, int] | None = None
    path: Path | None = None
    encoded: Callable[[], bytes] | None = None
    name: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class TextExample:
    """A chat, or plain text: exactly one of `messages` and `text`; `name` as that of a picture."""

    place: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    name: str = ""


Example = ImageExample | TextExample


def name_of(example: Example) -> str:
    """What tells an example from the others of its data set."""
    return example.name or example.place


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or line. An error stops a training, a warning does not."""

    place: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Where and what."""
        return f"{self.place}: {self.message}"

    @staticmethod
    def of(place: str, error: DataError) -> Problem:
        """What `error`, whose message begins with "PLACE: ", says of this place."""
        return Problem(place, error.message.removeprefix(f"{place}: "))


@dataclass(frozen=True)
class Reading:
    """All that was found at a source: examples in a stable order, and what is wrong with others."""

    format: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
