"""Instructions: a question and its answer in each line of a .jsonl file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.data.base import Example, Message, Problem, TextExample
from acmsao_cli.data.chats import system_turn, validated
from acmsao_cli.data.records import Record, converted, first_records, keys_of, text_of
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

# (the request, what may follow it after an empty line, the answer)
SHAPES = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("question", "context", "answer"),
)


def shape_of(fields: dict[str, Any]) -> tuple[str, str | None, str] | None:
    """The first shape whose request and answer are both there."""
    return next((shape for shape in SHAPES if shape[0] in fields and shape[2] in fields), None)


@data_format(
    "instruction",
    kind="text",
    wants='.jsonl with {"instruction", "input", "output"} lines (or prompt and completion, '
    "question and answer)",
    matches=lambda source: any(shape_of(fields) for fields in first_records(source)),
)
def read_instructions(source: Source, section: TextData) -> Iterator[Example | Problem]:
    """Every line as a chat of one question and one answer."""
    yield from converted(source, _example)
    yield from source.unused(".jsonl")


def _example(record: Record) -> TextExample:
    shape = shape_of(record.fields)
    if shape is None:
        raise DataError(
            f"{record.place}: no `instruction` and `output`; its keys are {keys_of(record.fields)}"
        )
    request_key, extra_key, answer_key = shape
    request = text_of(record.fields[request_key], record.place, request_key)
    extra = record.fields.get(extra_key) if extra_key else None
    if extra not in (None, ""):
        request = f"{request}\n\n{text_of(extra, record.place, str(extra_key))}"
    if not request.strip():
        raise DataError(f"{record.place}: `{request_key}` is empty")
    answer = text_of(record.fields[answer_key], record.place, answer_key)
    turns = [Message("user", request), Message("assistant", answer)]
    return validated(record, [*system_turn(record), *turns])
