"""What a data set yields, before any model has seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from acmsao_cli.data.files import Stamp
from acmsao_cli.errors import InputError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageExample:
    """A captioned picture; `open` decodes it to RGB, upright, and raises DataError if it cannot.

    `open` can be pickled, for another process to call. `size` is (height, width) as the header
    tells, where somebody has looked; `path` is its file, if it is one, and `stamp` that file's when
    its header was read.
    """

    place: str
    caption: str
    open: Callable[[], Image.Image]
    size: tuple[int, int] | None = None
    path: Path | None = None
    stamp: Stamp | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class TextExample:
    """A chat, or plain text: exactly one of `messages` and `text`."""

    place: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None


Example = ImageExample | TextExample


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
    def of(place: str, error: InputError) -> Problem:
        """What `error`, whose message begins with "PLACE: ", says of this place."""
        return Problem(place, error.message.removeprefix(f"{place}: "))


@dataclass(frozen=True)
class Reading:
    """All that was found at a source: examples in a stable order, and what is wrong with others."""

    format: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()

    def without(self, problems: Sequence[Problem]) -> Reading:
        """The reading without the examples at the places of `problems`, which join its own."""
        places = {problem.place for problem in problems}
        kept = tuple(example for example in self.examples if example.place not in places)
        return replace(self, examples=kept, problems=(*self.problems, *problems))
