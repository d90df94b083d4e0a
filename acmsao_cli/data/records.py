"""Text files and JSON lines, read with the number of each line and bounds on its length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from acmsao_cli.data.base import Example, Problem
from acmsao_cli.data.files import open_regular, printable, reason
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_TEXT_BYTES = 2**30


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, and where it stands."""

    place: str
    file: PurePosixPath
    line: int
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        """Where it stands in its data set."""
        return line_name(self.file, self.line)


def line_name(file: PurePosixPath, line: int) -> str:
    """What an example is called that begins on this line."""
    return f"{file}:{line}"


def decode(data: bytes, place: str) -> str:
    """UTF-8 with or without a byte order mark. Raises DataError with the offset of a wrong byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="save the file as UTF-8",
        ) from error


def read_text(source: Source, file: PurePosixPath, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The whole of a text file. Raises DataError for other encodings and above `max_bytes`."""
    place = source.place(file)
    try:
        with open_regular(source.path(file), place) as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {reason(error)}") from error
    if len(data) > max_bytes:
        raise DataError(f"{place}: longer than {max_bytes // 1024} KiB")
    return decode(data, place)


def records(source: Source, file: PurePosixPath) -> Iterator[Record | Problem]:
    """The objects of a .jsonl file; a line that is none is a problem, an empty line is nothing."""
    whole = source.place(file)
    try:
        with open_regular(source.path(file), whole) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                place, name = source.place(file, number), line_name(file, number)
                if len(line) > MAX_LINE_BYTES:
                    message = f"longer than {MAX_LINE_BYTES // 2**20} MiB; not read on"
                    yield Problem(place, message, name=name)
                    return
                try:
                    fields = _object(line, place)
                except DataError as error:
                    yield Problem.of(place, error, name)
                    continue
                if fields is not None:
                    yield Record(place, file, number, fields)
    except DataError as error:
        yield Problem.of(whole, error)
    except OSError as error:
        yield Problem(whole, f"cannot be read: {reason(error)}")


class _TwiceError(ValueError):
    """A key that an object has twice; JSON would let the last one win."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def _object(line: bytes, place: str) -> dict[str, Any] | None:
    """The JSON object on a line, None for an empty line."""
    text = decode(line, place).strip()
    if not text:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except _TwiceError as error:
        raise DataError(f"{place}: `{printable(error.key, 40)}` stands twice") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON that can be read: {reason(error)}") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: a {kind_of(value)}; each line must be one JSON object {{...}}")
    return value


def first_records(source: Source) -> Iterator[dict[str, Any]]:
    """The first readable object of each .jsonl file, to tell formats by."""
    for file in source.with_suffix(".jsonl"):
        found = (item.fields for item in records(source, file) if isinstance(item, Record))
        yield from (fields for fields, _ in zip(found, range(1), strict=False))


def converted(source: Source, convert: Callable[[Record], Example]) -> Iterator[Example | Problem]:
    """Every record of every .jsonl file as an example; what `convert` refuses is a problem."""
    for file in source.with_suffix(".jsonl"):
        empty = True
        for item in records(source, file):
            empty = False
            if isinstance(item, Problem):
                yield item
                continue
            try:
                yield convert(item)
            except DataError as error:
                yield Problem.of(item.place, error, item.name)
        if empty:
            yield Problem(source.place(file), "the file is empty")


def text_of(value: object, place: str, name: str) -> str:
    """`value` if it is a text that can be encoded. Raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{place}: `{name}` must be a text, not a {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: `{name}` holds half a character (a lone surrogate)") from error
    return value


def keys_of(fields: dict[str, Any]) -> str:
    """The keys of a record, for messages."""
    return ", ".join(f"`{printable(key, 40)}`" for key in list(fields)[:12]) or "none"


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")
