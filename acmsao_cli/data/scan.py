"""Every picture of a data set decoded once, before anything else is done with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from acmsao_cli.data.base import Example, ImageExample, Problem, Reading
from acmsao_cli.errors import DataError
from acmsao_cli.privacy import at_home

# By path: size in bytes and time of the last change, in nanoseconds.
Stamps: TypeAlias = Mapping[str, list[int]]

# Decoders let go of the interpreter, and a picture in memory may take 300 MB.
THREADS: Final = min(4, os.cpu_count() or 1)


def decoded(
    reading: Reading,
    seen: Stamps | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reading:
    """The reading once every picture was decoded as for a training; broken ones are errors.

    A file whose stamp is among those `seen` is not decoded again.
    """
    unknown = [one for one in reading.examples if not _is_seen(one, seen or {})]
    broken: dict[int, Problem] = {}
    pool = ThreadPoolExecutor(THREADS)
    try:
        found = zip(unknown, pool.map(_problem, unknown), strict=True)
        for done, (example, problem) in enumerate(found, 1):
            progress(done, len(unknown))
            if problem is not None:
                broken[id(example)] = problem
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops a run does not wait for the rest
    whole = tuple(one for one in reading.examples if id(one) not in broken)
    return replace(reading, examples=whole, problems=(*reading.problems, *broken.values()))


def stamps(reading: Reading) -> dict[str, list[int]]:
    """Those of the pictures that are files, to be passed to `decoded` another time."""
    found = {}
    for example in reading.examples:
        if isinstance(example, ImageExample) and example.path is not None:
            found[at_home(str(example.path))] = _stamp(example.path)
    return found


def _is_seen(example: Example, seen: Stamps) -> bool:
    if not isinstance(example, ImageExample):
        return True
    if example.path is None:
        return False
    return seen.get(at_home(str(example.path))) == _stamp(example.path)


def _stamp(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:  # gone since it was found: decoding it will say so
        return []
    return [found.st_size, found.st_mtime_ns]


def _problem(example: Example) -> Problem | None:
    assert isinstance(example, ImageExample)
    try:
        example.open()
    except DataError as error:
        return Problem.of(example.place, error)
    return None
