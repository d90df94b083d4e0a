"""Which model it is that a run loads: its files by their content, wherever they lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from acmsao_cli.errors import ModelError
from acmsao_cli.identity import Item, Manifest, nothing, read_item
from acmsao_cli.models.base import Progress, silent


def identify(
    files: Mapping[str, Path],
    known: Manifest,
    progress: Progress = silent,
    between: Callable[[], None] = nothing,
) -> dict[str, Item]:
    """The items of a model's `files`; one that has the stamp of the `known` is not read again.

    Raises ModelError where a file cannot be read.
    """
    found = {}
    for done, name in enumerate(sorted(files)):
        progress(done, len(files))
        try:
            with files[name].open("rb") as stream:
                found[name] = read_item(stream, known.get(name), between=between)
        except OSError as error:
            raise ModelError(f"{files[name]} cannot be read: {error.strerror}") from error
    progress(len(files), len(files))
    return found


class _GivenUpError(Exception):
    """Nobody waits for the items any more."""


@contextmanager
def identified_meanwhile(
    files: Mapping[str, Path], known: Manifest
) -> Iterator[Callable[[], dict[str, Item]]]:
    """`identify` in a thread of its own; what is handed out waits for the items.

    Hashing lets go of the interpreter: a training goes on beside it. At the end it is given up.
    """
    given_up = threading.Event()

    def go_on() -> None:
        if given_up.is_set():
            raise _GivenUpError

    with ThreadPoolExecutor(1, "identity") as pool:
        found = pool.submit(identify, files, known, between=go_on)
        try:
            yield found.result
        finally:
            given_up.set()
