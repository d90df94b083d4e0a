"""From a chat to token ids, and which of them an assistant wrote.

The tokenizer's own chat template writes the text. Templates with `{% generation %}` marks say which
characters are the assistant's; for others the text before an answer (with the generation prompt)
and the text up to its end are rendered too, and what lies between is the answer. The marks of an
answer's end (<|im_end|>, EOS) belong to it: a model that never learns them never stops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from acmsao_cli.data.base import Message, TextExample
from acmsao_cli.data.files import reason
from acmsao_cli.errors import DataError, InputError, ModelError
from acmsao_cli.models.time_limit import TookTooLongError, time_limit

# Of one chat; a template of an ordinary model takes a millisecond.
RENDERING_SECONDS = 20
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

# What instructions become where the tokenizer has no chat template of its own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% elif message.role == 'assistant' %}### Response:\n"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% if not loop.last %}\n\n{% endif %}"
    "{% else %}{{ message.content }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)

EVERYTHING = "set data.train_on=everything to train on the whole chat"


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a rendered chat."""

    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """Token ids of one example; `trained` says of each whether it is to be predicted."""

    ids: Sequence[int]
    trained: Sequence[bool]


def plain_template(tokenizer: Any) -> str:
    """PLAIN_TEMPLATE, beginning with BOS where the tokenizer begins plain texts with it."""
    return ("{{ bos_token }}" if begins_with_bos(tokenizer) else "") + PLAIN_TEMPLATE


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts BOS before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def chat_tokens(tokenizer: Any, example: TextExample, *, everything: bool) -> Tokens:
    """The ids of a chat; trained are the assistant's turns with their end marks, or everything.

    EOS is added, and trained, where the template ends the last answer without any mark. Raises
    DataError, and ModelError where no chat can be told apart.
    """
    messages = as_dicts(example.messages or ())
    marks = _marks(tokenizer)
    if everything:
        text = render(tokenizer, example, messages)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = Tokens(ids, [True] * len(ids))
    else:
        text, spans = _answers(tokenizer, example, messages, marks)
        tokens = _align(tokenizer, example, text, spans)
    unmarked = messages[-1]["role"] == "assistant" and not text.rstrip().endswith(marks)
    return with_eos(tokenizer, tokens) if unmarked else tokens


def with_eos(tokenizer: Any, tokens: Tokens) -> Tokens:
    """The same with EOS, trained, at the end; unchanged if it ends so already or there is none."""
    eos = tokenizer.eos_token_id
    if eos is None or list(tokens.ids[-1:]) == [eos]:
        return tokens
    return Tokens([*tokens.ids, eos], [*tokens.trained, True])


def render(
    tokenizer: Any,
    example: TextExample,
    messages: Sequence[dict[str, str]],
    *,
    prompt: bool = False,
) -> str:
    """The chat as text, with the beginning of an answer if `prompt`. Raises DataError."""
    return _render(tokenizer, example, messages, prompt=prompt, marked=False)[0]


def end_of_turn(tokenizer: Any) -> int | None:
    """The id of the mark with which the template ends an answer, if it has one."""
    probe = TextExample("", (Message("user", "a"), Message("assistant", "b")))
    try:
        tokens = chat_tokens(tokenizer, probe, everything=False)
    except InputError:
        return None
    answer = [token for token, trained in zip(tokens.ids, tokens.trained, strict=True) if trained]
    ends = [token for token in answer if tokenizer.decode([token]) in _marks(tokenizer)]
    return ends[-1] if ends else None


def as_dicts(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as templates want them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _marks(tokenizer: Any) -> tuple[str, ...]:
    """Special and added tokens as text: what templates mark turns with."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return tuple({text for text in (*added, *tokenizer.all_special_tokens) if text.strip()})


def _render(
    tokenizer: Any,
    example: TextExample,
    messages: Sequence[dict[str, str]],
    *,
    prompt: bool,
    marked: bool,
) -> tuple[str, list[Span]]:
    try:
        with time_limit(RENDERING_SECONDS):
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=tokenizer.get_chat_template(),
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marked,
                **tokenizer.special_tokens_map,
            )
    except (TemplateSyntaxError, ArithmeticError, RecursionError, TookTooLongError) as error:
        raise ModelError(
            f"the tokenizer's chat template is faulty: {reason(error)}",
            hint="repair chat_template in the model's folder, or start from another model",
        ) from error
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(
            f"{example.place}: the tokenizer's chat template refuses this chat: {error}",
            hint="templates often want user and assistant to alternate; some know no system role",
        ) from error
    return texts[0], [Span(*span) for span in spans[0]] if marked else []


def _answers(
    tokenizer: Any, example: TextExample, messages: Sequence[dict[str, str]], marks: tuple[str, ...]
) -> tuple[str, list[Span]]:
    """The chat as text, and where in it the answers with their end marks lie."""
    if GENERATION_MARK.search(tokenizer.get_chat_template()):
        text, spans = _render(tokenizer, example, messages, prompt=False, marked=True)
        return text, [_with_end_mark(text, span, marks) for span in spans]
    text = render(tokenizer, example, messages)
    spans = _between(tokenizer, example, messages, text)
    return text, [_without_trail(text, span, marks) for span in spans]


def _between(
    tokenizer: Any, example: TextExample, messages: Sequence[dict[str, str]], text: str
) -> list[Span]:
    """Where the answers lie in `text`: from the end of the prompt before each to its turn's end."""
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, example, messages[:turn], prompt=True) if turn else ""
        after = render(tokenizer, example, messages[: turn + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise DataError(
                f"{example.place}: the tokenizer's chat template writes earlier turns differently "
                "once later ones follow, so it cannot be told which tokens are the answers",
                hint=f"{EVERYTHING}, or use one question and one answer per example",
            )
        spans.append(Span(len(before), len(after)))
    return spans


def _with_end_mark(text: str, span: Span, marks: tuple[str, ...]) -> Span:
    """Take in the mark that follows, unless the span ends with one."""
    if text[: span.end].endswith(marks):
        return span
    following = [mark for mark in marks if text.startswith(mark, span.end)]
    return Span(span.start, span.end + max(map(len, following), default=0))


def _without_trail(text: str, span: Span, marks: tuple[str, ...]) -> Span:
    """Leave out white space after the end mark: nobody asks the model to write it."""
    end = span.start + len(text[span.start : span.end].rstrip())
    return Span(span.start, end) if text[:end].endswith(marks) else span


def _align(tokenizer: Any, example: TextExample, text: str, spans: Sequence[Span]) -> Tokens:
    """Tokens of `text`; trained are those that share a character with a span."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{example.place}: {type(tokenizer).__name__} does not say which characters its tokens "
            "stand for, so answers cannot be found",
            hint="use a model folder with a tokenizer.json, or data of plain texts",
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained, reached = [], 0
    for start, end in encoded["offset_mapping"]:
        # Byte-level tokenizers leave white space out of the offsets: what was skipped belongs to
        # the token that follows.
        start, reached = min(start, reached), max(reached, end)
        trained.append(any(start < span.end and span.start < end for span in spans))
    return Tokens(encoded["input_ids"], trained)
