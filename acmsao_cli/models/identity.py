"""Which model it is that a run loads: its files by their content, wherever they lie.

A hash says something of what was loaded only if the file was the same all the time: its stamp is
taken before it is opened, looked at behind the loading, and again when it is hashed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from acmsao_cli.errors import ModelError
from acmsao_cli.identity import Item, Manifest, Stamp, nothing, read_item, stamp_at
from acmsao_cli.models.base import Progress, silent

Stamps: TypeAlias = Mapping[str, Stamp]

SECONDS_BETWEEN_LOOKS: Final = 1.0


def stamps_of(files: Mapping[str, Path]) -> dict[str, Stamp]:
    """The stamp of each file now."""
    return {name: stamp_at(path) for name, path in files.items()}


def require_unchanged(files: Mapping[str, Path], stamps: Stamps) -> None:
    """Raise ModelError unless each file still has its stamp."""
    for name, path in files.items():
        now = stamp_at(path)
        if now != stamps[name] or not now:
            raise changed(path, now)


def changed(path: Path, now: Stamp) -> ModelError:
    """The error of a file that is not the one that was looked at."""
    gone = "" if now else ": it is gone"
    return ModelError(
        f"{path} changed since the run looked at it{gone}",
        hint="start again when nothing writes to the model any more",
    )


def identify(
    files: Mapping[str, Path],
    known: Manifest,
    progress: Progress = silent,
    between: Callable[[], None] = nothing,
    stamps: Stamps | None = None,
) -> dict[str, Item]:
    """The items of a model's `files`; one that has the stamp of the `known` is not read again.

    Raises ModelError where a file cannot be read, or is not the one that has its stamp in `stamps`.
    """
    found = {}
    for done, name in enumerate(sorted(files)):
        progress(done, len(files))
        try:
            with files[name].open("rb") as stream:
                found[name] = read_item(stream, known.get(name), between=between)
        except OSError as error:
            raise ModelError(f"{files[name]} cannot be read: {error.strerror}") from error
        if stamps is not None and found[name].stamp != stamps[name]:
            raise changed(files[name], stamp_at(files[name]))
    progress(len(files), len(files))
    return found


class _GivenUpError(Exception):
    """Nobody waits for the items any more."""


@contextmanager
def identified_meanwhile(
    files: Mapping[str, Path], known: Manifest, stamps: Stamps | None = None
) -> Iterator[Callable[[Progress], dict[str, Item]]]:
    """`identify` in a thread of its own; what is handed out waits for the items, and tells so.

    Hashing lets go of the interpreter: a training goes on beside it. At the end it is given up.
    """
    given_up = threading.Event()
    read = 0

    def go_on() -> None:
        if given_up.is_set():
            raise _GivenUpError

    def count(done: int, total: int) -> None:
        nonlocal read
        read = done

    with ThreadPoolExecutor(1, "identity") as pool:
        found = pool.submit(identify, files, known, count, go_on, stamps)

        def wait(progress: Progress) -> dict[str, Item]:
            waited = not found.done()
            while not found.done():
                progress(read, len(files))
                wait_for([found], SECONDS_BETWEEN_LOOKS)
            if waited:
                progress(len(files), len(files))
            return found.result()

        try:
            yield wait
        finally:
            given_up.set()
