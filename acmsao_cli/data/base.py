"""What a data set yields, before any model has seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from acmsao_cli.errors import InputError
from acmsao_cli.identity import Stamp

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageExample:
    """A captioned picture; `open` decodes it to RGB, upright, and raises DataError if it cannot.

    `open` can be pickled, for another process to call. `size` is (height, width) as the header
    tells, where somebody has looked; `path` is its file, if it is one, else `encoded` gives its
    bytes; `stamp` is that file's when its header was read. `name` is relative to the data set:
    wherever that lies, it stays.
    """

    place: str
    caption: str
    open: Callable[[], Image.Image]
    size: tuple[int, int] | None = None
    path: Path | None = None
    encoded: Callable[[], bytes] | None = None
    name: str = ""
    stamp: Stamp = ()


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

# What becomes of an example that turns out to be unusable; it is left out if this returns.
Unusable = Callable[[Example, InputError], None]


def refused(example: Example, error: InputError) -> None:
    """What a caller does that leaves nothing out."""
    raise error


def name_of(example: Example) -> str:
    """What tells an example from the others of its data set."""
    return example.name or example.place


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or line. An error stops a training, a warning does not.

    `name` is that of the example it is about, where there was one.
    """

    place: str
    message: str
    severity: Literal["error", "warning"] = "error"
    name: str = ""

    def __str__(self) -> str:
        """Where and what."""
        return f"{self.place}: {self.message}"

    @staticmethod
    def of(place: str, error: InputError, name: str = "") -> Problem:
        """What `error`, whose message begins with "PLACE: ", says of this place."""
        return Problem(place, error.message.removeprefix(f"{place}: "), name=name)


@dataclass(frozen=True)
class Reading:
    """All that was found at a source: examples in a stable order, and what is wrong with others."""

    format: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()

    def without(self, problems: Sequence[Problem]) -> Reading:
        """The reading without the examples that have `problems`, which join its own."""
        names = {problem.name for problem in problems}
        kept = tuple(example for example in self.examples if name_of(example) not in names)
        return replace(self, examples=kept, problems=(*self.problems, *problems))
