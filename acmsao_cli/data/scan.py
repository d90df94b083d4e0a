"""Every picture of a data set decoded once, before anything else is done with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from acmsao_cli.data.base import Example, ImageExample, Problem, Reading, name_of
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Manifest, stamp_at

# Decoders let go of the interpreter, and a picture in memory may take 300 MB.
THREADS: Final = min(4, os.cpu_count() or 1)


def decoded(
    reading: Reading,
    seen: Manifest | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reading:
    """The reading once every picture was decoded as for a training; broken ones are errors.

    A file that has the stamp it was `seen` whole with is not decoded again.
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


def _is_seen(example: Example, seen: Manifest) -> bool:
    if not isinstance(example, ImageExample):
        return True
    item = seen.get(name_of(example))
    if example.path is None or item is None or not item.stamp:
        return False
    return item.stamp == stamp_at(example.path)


def _problem(example: Example) -> Problem | None:
    assert isinstance(example, ImageExample)
    try:
        example.open()
    except DataError as error:
        return Problem.of(example.place, error)
    return None
