"""Chats: one object per line of a .jsonl file, its turns under `messages` or `conversations`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.data.base import Example, Message, Problem, TextExample
from acmsao_cli.data.chats import system_turn, validated
from acmsao_cli.data.files import printable
from acmsao_cli.data.records import Record, converted, first_records, keys_of, kind_of, text_of
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

KEYS = ("messages", "conversations")
# A turn is {role, content}, or as ShareGPT has it {from, value}.
TURNS = (("role", "content"), ("from", "value"))
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# What would change the training if it were passed over.
UNSUPPORTED = ("tools", "tool_calls", "functions", "function_call")


def is_chat(source: Source) -> bool:
    """Some .jsonl file begins with a chat."""
    return any(key in fields for fields in first_records(source) for key in KEYS)


@data_format(
    "messages",
    kind="text",
    wants='.jsonl with {"messages": [{"role", "content"}, ...]} lines',
    matches=is_chat,
)
def read_messages(source: Source, section: TextData) -> Iterator[Example | Problem]:
    """The chat of every line."""
    yield from converted(source, _example)
    yield from source.unused(".jsonl")


def _example(record: Record) -> TextExample:
    key = next((key for key in KEYS if key in record.fields), None)
    if key is None:
        raise DataError(f"{record.place}: no `messages`; its keys are {keys_of(record.fields)}")
    turns = record.fields[key]
    if not isinstance(turns, list):
        raise DataError(f"{record.place}: `{key}` must be a list, not a {kind_of(turns)}")
    _refuse_unsupported(record.fields, record.place)
    messages = [
        _message(turn, f"{key}[{number}]", record.place) for number, turn in enumerate(turns)
    ]
    return validated(record, [*system_turn(record), *messages])


def _message(turn: object, name: str, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: `{name}` must be an object, not a {kind_of(turn)}")
    for role_key, content_key in TURNS:
        if role_key in turn and content_key in turn:
            break
    else:
        raise DataError(
            f"{place}: `{name}` needs `role` and `content`; its keys are {keys_of(turn)}"
        )
    _refuse_unsupported(turn, place)
    said = turn[role_key]
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        shown = printable(repr(said), 40)
        raise DataError(f"{place}: `{name}` has unknown role {shown}; roles: {', '.join(ROLES)}")
    return Message(role, text_of(turn[content_key], place, f"{name}.{content_key}"))


def _refuse_unsupported(fields: dict[str, Any], place: str) -> None:
    for key in UNSUPPORTED:
        if fields.get(key):
            raise DataError(f"{place}: `{key}` is not supported; remove it or the example")
    if fields.get("weight", 1) != 1:
        raise DataError(f"{place}: `weight` is not supported; remove it or the example")
