"""What `acmsao data check` says of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import Message, Reading, TextExample
from acmsao_cli.data.reading import geometries, pictures

Fact = tuple[str, str]


def summarise(reading: Reading, section: ImageData | TextData) -> list[Fact]:
    """Facts as (name, value), in the order in which they should be told."""
    severities = Counter(problem.severity for problem in reading.problems)
    found = "found by looking" if section.format == "auto" else "as the recipe says"
    facts = [
        ("source", section.source),
        ("format", f"{reading.format} ({found})"),
        ("examples", str(len(reading.examples))),
        ("problems", f"{severities['error']} errors, {severities['warning']} warnings"),
    ]
    if not reading.examples:
        return facts
    if isinstance(section, ImageData):
        return facts + _picture_facts(reading, section)
    return facts + _text_facts([e for e in reading.examples if isinstance(e, TextExample)])


def _picture_facts(reading: Reading, section: ImageData) -> list[Fact]:
    examples = pictures(reading.examples)
    plans = [plan for _, plan in geometries(examples, section)]
    targets = Counter(plan.target for plan in plans)
    ordered = sorted(plans, key=lambda plan: plan.original[0] * plan.original[1])
    captions = Counter(example.caption for example in examples)
    facts = []
    if ordered:
        smallest, largest = (_size(ordered[end].original) for end in (0, -1))
        facts = [
            ("picture sizes", f"from {smallest} to {largest} (width x height)"),
            ("training sizes", ", ".join(f"{_size(t)}: {n}" for t, n in targets.most_common())),
            ("scaled up", str(sum(plan.upscaled for plan in plans))),
        ]
    words = [len(example.caption.split()) for example in examples]
    return [
        *facts,
        ("caption length", _spread(words, "words")),
        ("distinct captions", f"{len(captions)} of {len(examples)}"),
    ]


def _text_facts(examples: Sequence[TextExample]) -> list[Fact]:
    chats = [example.messages for example in examples if example.messages is not None]
    lengths = [
        sum(len(message.content) for message in example.messages or ()) + len(example.text or "")
        for example in examples
    ]
    distinct = len({(example.messages, example.text) for example in examples})
    facts = [("chats", str(len(chats)))] if chats else []
    if chats:
        facts += [
            ("turns per chat", _spread([len(chat) for chat in chats], "turns")),
            ("turns by role", _roles([message for chat in chats for message in chat])),
        ]
    return [
        *facts,
        ("example length", _spread(lengths, "characters")),
        ("repeated examples", str(len(examples) - distinct)),
    ]


def _roles(messages: Sequence[Message]) -> str:
    counts = Counter(message.role for message in messages)
    return ", ".join(f"{role} {number}" for role, number in sorted(counts.items()))


def _spread(numbers: Sequence[int], unit: str) -> str:
    return f"{min(numbers)} to {max(numbers)} {unit}, median {median(numbers):g}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
