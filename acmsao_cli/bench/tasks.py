"""Small real tasks for comparing optimizers: seconds each on one core, from what ships with the
package and with Python.

A task is opened with a seed, which draws its first weights and its batches; what it is validated on
is the same for every seed.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pydoc_data import topics
from typing import TYPE_CHECKING, Any, Final

from acmsao_cli import builtin

if TYPE_CHECKING:
    from acmsao_cli.bench.opened import Opened


@dataclass(frozen=True)
class Task:
    """`open` takes a seed; `digest` tells apart what has one name and is not the same."""

    name: str
    about: str
    unit: str
    steps: int
    open: Callable[[int], Opened]
    digest: str = ""

    @property
    def identity(self) -> str:
        """What its runs are kept under."""
        return f"{self.name}@{self.digest}" if self.digest else self.name


# Python's own language reference: nine topics of ten to learn from, and every tenth.


def reference_texts() -> tuple[str, str]:
    """What is shown and what is held out of `pydoc_data.topics`."""
    texts = [topics.topics[name] for name in sorted(topics.topics)]
    shown = "\n".join(text for number, text in enumerate(texts) if number % 10)
    return shown, "\n".join(texts[::10])


@cache
def text_digest() -> str:
    """Which text it was: it comes with Python and changes with its versions."""
    joined = "".join(topics.topics[name] for name in sorted(topics.topics))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


@cache
def builtin_digest(*patterns: str) -> str:
    """Which of the package's files they were, by what is in them."""
    files = sorted(file for pattern in patterns for file in builtin.FOLDER.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def opened(opener: str, seed: int, **options: Any) -> Opened:
    """What an opener of `built_in` makes; the model libraries take seconds, so it waits for now."""
    found: Opened = getattr(importlib.import_module("acmsao_cli.bench.built_in"), opener)(
        seed, **options
    )
    return found


TASKS: Final = {
    task.name: task
    for task in (
        Task(
            "pictures",
            "a UNet of 0.2M parameters draws zoblins at 16 x 16 (rectified flow), from scratch",
            "mean squared error on 5 held-out pictures at 8 noise levels",
            300,
            partial(opened, "open_pictures"),
            builtin_digest("zoblins/*.png"),
        ),
        Task(
            "bytes",
            "a decoder of 0.135M parameters reads Python's language reference byte by byte, batch "
            "16, from scratch",
            "cross-entropy per byte on every tenth topic",
            500,
            partial(opened, "open_bytes", rows=16),
            text_digest(),
        ),
        Task(
            "bytes-batch-2",
            "the same decoder at batch 2",
            "cross-entropy per byte on every tenth topic",
            2500,
            partial(opened, "open_bytes", rows=2),
            text_digest(),
        ),
        Task(
            "lora",
            "LoRA of rank 8 on builtin:tiny-llm (2.1M parameters) learns builtin:pirate",
            "cross-entropy per answer token on 30 held-out chats",
            100,
            partial(opened, "open_lora"),
            builtin_digest("pirate.jsonl", "tiny-llm/*"),
        ),
        Task(
            "text",
            "a Llama of 0.2M parameters reads Python's language reference, from scratch",
            "cross-entropy per token on every tenth topic",
            260,
            partial(opened, "open_reader"),
            text_digest(),
        ),
    )
}

# What a comparison is held on where none is named; `text` is like `bytes`, and slower.
USUAL: Final = ("pictures", "bytes", "bytes-batch-2", "lora")
