"""Every picture of a data set decoded once, before anything else is done with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import ImageExample, Problem, Reading, name_of
from acmsao_cli.data.workers import Job, attempt, in_order
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Manifest

if TYPE_CHECKING:
    from PIL import Image

# Decoders let go of the interpreter, and a picture in memory may take 300 MB.
THREADS: Final = min(4, os.cpu_count() or 1)


def decoded(
    reading: Reading,
    section: ImageData | TextData,
    seen: Manifest | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reading:
    """The reading once every picture was decoded as for a training; broken ones are errors.

    A file that has the stamp it was `seen` whole with is not decoded again. Raises WorkerError.
    """
    unknown = [
        one
        for one in reading.examples
        if isinstance(one, ImageExample) and not _is_seen(one, seen or {})
    ]
    workers = section.workers if isinstance(section, ImageData) else 0
    jobs = [Job(one.place, partial(look_at, one.open)) for one in unknown]
    broken: list[Problem] = []
    looking = in_order(jobs, workers) if workers else _in_threads(jobs)
    with looking as found:
        for done, (example, error) in enumerate(zip(unknown, found, strict=True), 1):
            progress(done, len(unknown))
            if error is not None:
                broken.append(Problem.of(example.place, error, name_of(example)))
    return reading.without(broken)


def look_at(opener: Callable[[], Image.Image]) -> None:
    """Raises DataError where the picture cannot be decoded."""
    opener()


@contextmanager
def _in_threads(jobs: Sequence[Job[None]]) -> Iterator[Iterator[DataError | None]]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool.map(lambda job: attempt(job.work), jobs)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops a run does not wait for the rest


def _is_seen(example: ImageExample, seen: Manifest) -> bool:
    item = seen.get(name_of(example))
    return item is not None and bool(item.stamp) and item.stamp == example.stamp
