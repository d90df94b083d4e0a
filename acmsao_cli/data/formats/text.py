"""Plain text: a `text` in each line of .jsonl files, or the paragraphs of .txt files."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.data.base import Example, Problem, TextExample
from acmsao_cli.data.records import (
    Record,
    converted,
    first_records,
    keys_of,
    line_name,
    read_text,
    text_of,
)
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

KEY = "text"


def is_plain(source: Source) -> bool:
    """Lines with a text, or text files and no .jsonl that would be of another format."""
    first = list(first_records(source))
    return any(KEY in fields for fields in first) or (
        not any(source.with_suffix(".jsonl")) and any(source.with_suffix(".txt"))
    )


@data_format(
    "text",
    kind="text",
    wants='.jsonl with {"text"} lines, or .txt with a blank line between examples',
    matches=is_plain,
)
def read_plain(source: Source, section: TextData) -> Iterator[Example | Problem]:
    """Each line's `text` as it is; each paragraph of a .txt file, since whole books never fit."""
    yield from converted(source, _example)
    for file in source.with_suffix(".txt"):
        yield from _paragraphs(source, file)
    yield from source.unused(".jsonl", ".txt")


def _example(record: Record) -> TextExample:
    if KEY not in record.fields:
        raise DataError(f"{record.place}: no `{KEY}`; its keys are {keys_of(record.fields)}")
    text = text_of(record.fields[KEY], record.place, KEY)
    if not text.strip():
        raise DataError(f"{record.place}: `{KEY}` is empty")
    return TextExample(record.place, text=text, name=record.name)


def _paragraphs(source: Source, file: PurePosixPath) -> Iterator[Example | Problem]:
    place = source.place(file)
    try:
        text = read_text(source, file).replace("\r\n", "\n").replace("\r", "\n")
    except DataError as error:
        yield Problem.of(place, error)
        return
    if not text.strip():
        yield Problem(place, "the file is empty")
    numbered = enumerate(text.split("\n"), start=1)
    for filled, lines in groupby(numbered, key=lambda pair: bool(pair[1].strip())):
        if filled:
            paragraph = list(lines)
            words = "\n".join(line for _, line in paragraph)
            line = paragraph[0][0]
            yield TextExample(source.place(file, line), text=words, name=line_name(file, line))
