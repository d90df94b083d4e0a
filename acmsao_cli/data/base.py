"""What a data set yields, before any model has seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageExample:
    """A captioned picture; `open` decodes it to RGB, upright, and raises DataError if it cannot."""

    place: str
    caption: str
    open: Callable[[], Image.Image]


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


@dataclass(frozen=True)
class Reading:
    """All that was found at a source: examples in a stable order, and what is wrong with others."""

    format: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
