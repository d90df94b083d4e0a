"""What the chat formats share: which sequences of turns can be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from acmsao_cli.data.base import Message, TextExample
from acmsao_cli.data.records import Record, text_of
from acmsao_cli.errors import DataError


def system_turn(record: Record) -> list[Message]:
    """The record's own `system` text as a turn, if it has one."""
    if record.fields.get("system") in (None, ""):
        return []
    return [Message("system", text_of(record.fields["system"], record.place, "system"))]


def validated(record: Record, messages: Sequence[Message]) -> TextExample:
    """The chat as an example. Raises DataError unless it ends with an answer and says something."""
    place = record.place
    if not messages:
        raise DataError(f"{place}: the chat has no turns")
    if messages[-1].role != "assistant":
        raise DataError(f"{place}: the last turn is by {messages[-1].role}, not by the assistant")
    if any(message.role == "system" for message in messages[1:]):
        raise DataError(f"{place}: a system turn must be the first, and the only one")
    if any(m.role == "assistant" and not m.content.strip() for m in messages):
        raise DataError(f"{place}: an answer is empty")
    return TextExample(place, messages=tuple(messages), name=record.name)
