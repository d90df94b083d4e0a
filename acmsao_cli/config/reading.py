"""YAML 1.2 to plain data, with the line of every key; what a recipe has no use for is refused.

Works on ruamel's events, so that neither an alias nor a tag is ever expanded, and nesting is
bounded before anything recurses.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from acmsao_cli.errors import ConfigError
from acmsao_cli.privacy import without_secrets

MAX_BYTES = 128 * 1024  # about half a second to read; a recipe has a few thousand bytes
MAX_DEPTH = 16
MAX_DIGITS = 40  # Python refuses to read endless whole numbers
LARGEST = 2**31 - 1  # of whole numbers: no setting means more, and tensors do not count so far

NULL = re.compile(r"(?:null|Null|NULL|~)?")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True)
class Document:
    """Plain nested values, and for every dotted path the place it was written at."""

    values: dict[str, Any]
    places: dict[str, str]


def read_file(path: Path, shown: str) -> Document:
    """Read the mapping in a file; `shown` is its name in errors and places."""
    text = _text(path, shown)
    reader = _Reader(shown)
    values = reader.read(text)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"{describe(values)}"
        raise ConfigError(
            f"{shown} must hold sections such as `model:`, found {found}",
            hint="`acmsao recipes show quickstart` prints a whole recipe",
        )
    return Document(values, {key: f"{shown}:{line}" for key, line in reader.lines.items()})


def read_value(text: str, shown: str) -> Any:
    """Read the value of a `key=value` argument: a scalar, or a list or mapping in brackets."""
    return _Reader(shown, numbered=False).read(text)


def describe(value: Any) -> str:
    """Say what a value is, for errors: `"four" (text)`."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, int):
        return f"{_short(str(value))} (a whole number)"
    if isinstance(value, float):
        return f"{value} (a number)"
    if isinstance(value, str):
        return f'"{_short(value)}" (text)'
    return f"{_short(str(value))} ({'a list' if isinstance(value, list) else 'a section'})"


def resolve_scalar(text: str) -> Any:
    """Read a plain scalar as YAML 1.2's core schema does: `1e-4` is a number, `on` is text."""
    if NULL.fullmatch(text):
        return None
    if BOOL.fullmatch(text):
        return text.lower() == "true"
    if INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if "n" in text else text)
    return text


def _short(text: str, limit: int = 60) -> str:
    text = without_secrets(text)  # a part of one would not be recognised later
    return text if len(text) <= limit else f"{text[:limit]}..."


def _text(path: Path, shown: str) -> str:
    # Opened without waiting: a named pipe would otherwise hang the command before it says anything.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{shown} is not a regular file", hint="name a .yaml file")
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise ConfigError(f"{shown} is a folder", hint="name a .yaml file in it") from error
    except OSError as error:
        raise ConfigError(f"{shown} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{shown} is larger than {MAX_BYTES // 1024} KiB", hint="is it a recipe at all?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line} is not UTF-8", hint="save the file as UTF-8") from error


class _Reader:
    """One pass over the events of one document."""

    def __init__(self, shown: str, *, numbered: bool = True) -> None:
        self.shown = shown
        self.numbered = numbered
        self.lines: dict[str, int] = {}
        self.events: Iterator[Event] = iter(())

    def read(self, text: str) -> Any:
        """Return the data of the only document in `text`; None for none."""
        try:
            self.events = YAML(typ="safe", pure=True).parse(text)
            next(self.events)  # the stream's start
            if not isinstance(next(self.events), DocumentStartEvent):
                return None
            value = self._node(next(self.events), "", 1)
            next(self.events)  # the document's end
            event = next(self.events)
            if isinstance(event, DocumentStartEvent):
                raise self._refusal(event, "a second document", "keep one recipe in a file")
            return value
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(
                f"a control character in {self._place(line)}",
                hint="remove it, or quote it as \\x..",
            ) from error
        except MarkedYAMLError as error:
            raise self._syntax(error) from error
        except (YAMLError, ValueError) as error:
            raise ConfigError(f"{self.shown} is not valid YAML") from error

    def _node(self, event: Event, path: str, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            raise self._refusal(event, f"an alias `*{event.anchor}`", "write the value out")
        assert isinstance(event, NodeEvent)
        if event.anchor is not None:
            raise self._refusal(
                event, f"an anchor `&{event.anchor}`", "write values out, each once"
            )
        if (tag := getattr(event, "tag", None)) is not None:
            raise self._refusal(event, f"a tag `{tag}`", "write plain values")
        if depth > MAX_DEPTH:
            raise self._refusal(event, f"more than {MAX_DEPTH} levels", "a recipe has two")
        if isinstance(event, MappingStartEvent):
            return self._mapping(path, depth)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path, depth)
        assert isinstance(event, ScalarEvent)
        return self._scalar(event)

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self._node(event, path, depth + 1)
            if not isinstance(key, str) or not key:
                raise self._refusal(event, f"{describe(key)} as a key", "keys are words")
            if "." in key:
                raise self._refusal(
                    event,
                    f"the key `{key}` with a dot",
                    "dots are for --set; in a file, indent keys under their section",
                )
            inner = f"{path}.{key}" if path else key
            if key in values:
                first = self._place(self.lines[inner])
                raise self._refusal(event, f"`{inner}` twice", f"it stands in {first} already")
            self.lines[inner] = event.start_mark.line + 1
            values[key] = self._node(next(self.events), inner, depth + 1)
        return values

    def _sequence(self, path: str, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            values.append(self._node(event, f"{path}[{len(values)}]", depth + 1))
        return values

    def _scalar(self, event: ScalarEvent) -> Any:
        text = str(event.value)
        if not event.implicit[0]:  # quoted or a block: text whatever it looks like
            return text
        if len(text) > MAX_DIGITS and (INT.fullmatch(text) or FLOAT.fullmatch(text)):
            raise self._refusal(event, f"a number of {len(text)} digits", "shorten it, or quote it")
        value = resolve_scalar(text)
        if isinstance(value, int) and abs(value) > LARGEST:
            what = f"the number {value}, which is above {LARGEST},"
            raise self._refusal(event, what, "shorten it, or quote it")
        return value

    def _place(self, line: int) -> str:
        return f"{self.shown}:{line}" if self.numbered else self.shown

    def _refusal(self, event: Event, what: str, hint: str) -> ConfigError:
        return ConfigError(f"{what} in {self._place(event.start_mark.line + 1)}", hint=hint)

    def _syntax(self, error: MarkedYAMLError) -> ConfigError:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
        if "\\t" in problem or "\t" in problem:
            hint = "indent with spaces, not tabs"
        elif self.numbered:
            hint = "check the indentation, and quote texts that contain `: ` or start with a sign"
        else:
            hint = "quote it twice, once for the shell: 'key=\"value\"'"
        place = self._place(mark.line + 1 if mark else 1)
        return ConfigError(f"not valid YAML in {place}: {problem}", hint=hint)
