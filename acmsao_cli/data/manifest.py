"""What a data set is: every example by its name, the bytes of its picture, and what it says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from acmsao_cli.data.base import Example, ImageExample, Reading, name_of
from acmsao_cli.data.files import open_regular, reason
from acmsao_cli.data.reading import bad
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Item, Manifest, hash_of_words, read_item

READERS: Final = 4


def manifest(
    examples: Sequence[Example],
    known: Manifest | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Item]:
    """The item of each example, by name; a picture whose stamp is `known` is not read again.

    Raises DataError where a picture is no longer there.
    """
    found: dict[str, Item] = {}
    item = partial(_item, known or {})
    pool = ThreadPoolExecutor(READERS)
    try:
        # Texts are at hand: handing them to another thread would take longer than hashing them.
        pictures = any(isinstance(example, ImageExample) for example in examples)
        items = pool.map(item, examples) if pictures else map(item, examples)
        for done, (example, one) in enumerate(zip(examples, items, strict=True), 1):
            found[name_of(example)] = one
            if pictures:
                progress(done, len(examples))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _item(known: Manifest, example: Example) -> Item:
    if not isinstance(example, ImageExample):
        turns = [[message.role, message.content] for message in example.messages or ()]
        return Item(says=hash_of_words(turns if example.text is None else example.text))
    says = hash_of_words(example.caption)
    if example.path is None:
        content = example.encoded() if example.encoded else b""
        return Item(len(content), hashlib.sha256(content).hexdigest(), says)
    try:
        with open_regular(example.path, example.place) as stream:
            return read_item(stream, known.get(name_of(example)), says)
    except OSError as error:
        raise DataError(f"{example.place}: cannot be read: {reason(error)}") from error


def left_out(reading: Reading, source: str) -> list[str]:
    """What cannot be trained on, by its place in the data set: wherever that lies, it stays."""
    around = os.path.dirname(source)
    return [
        str(problem).removeprefix(f"{source.rstrip('/')}/").removeprefix(f"{around}/")
        for problem in bad(reading)
    ]
