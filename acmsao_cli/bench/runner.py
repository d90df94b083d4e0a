"""Doing the runs: what is missing, over several processes, each finished run told and kept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Final, TypeAlias

from acmsao_cli.bench.contest import Job, Key, Row, record, recorded, tried
from acmsao_cli.errors import WorkerError


@dataclass(frozen=True)
class Progress:
    """A run that just ended, `done` of `total`, and a guess of the seconds left."""

    row: Row
    task: str
    done: int
    total: int
    left: float


AHEAD: Final = 2  # runs given out for each process, so that none waits for this one

Listener: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True)
class Stage:
    """Runs that can be made at once, and those that follow from their rows, `followers` of them."""

    jobs: Sequence[Job]
    follow: Callable[[list[Row]], Sequence[Job]] = lambda rows: ()
    followers: int = 0


def unprepared() -> None:
    """What another process does first, where nothing is asked for."""


def perform(
    stages: Sequence[Stage],
    cache: Path,
    processes: int,
    listener: Listener,
    prepare: Callable[[], None] = unprepared,
) -> None:
    """Make every run that is not in the cache; other processes begin with `prepare`.

    Raises WorkerError where a process died.
    """
    known = {key: row for key, row in recorded(cache).items() if "error" not in row}

    def keep(job: Job, row: Row) -> None:
        known[job.attempt.key] = row
        record(cache, row)
        done, total = counted(stages, known)
        left = (total - done) * typical_seconds(known) / processes
        listener(Progress(row, job.task.name, done, total, left))

    if processes == 1:
        while todo := missing(stages, known):
            keep(todo[0], tried(todo[0]))
    else:
        perform_beside(stages, known, processes, keep, prepare)


def perform_beside(
    stages: Sequence[Stage],
    known: dict[Key, Row],
    processes: int,
    keep: Callable[[Job, Row], None],
    prepare: Callable[[], None],
) -> None:
    """In several processes; `keep` adds to `known`, here. They end when this one stops."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        processes, mp_context=spawn, initializer=begin_process, initargs=(prepare,)
    )
    running: dict[Future[Row], Job] = {}
    try:
        while True:
            begun = {job.attempt.key for job in running.values()}
            waiting = [job for job in missing(stages, known) if job.attempt.key not in begun]
            for job in waiting[: AHEAD * processes - len(running)]:
                running[pool.submit(tried, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                keep(running.pop(future), future.result())
    except BrokenProcessPool as error:
        hint = "was memory short? fewer --jobs; the same command goes on from what is recorded"
        raise WorkerError("a process that made a run died", hint=hint) from error
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
        pool.shutdown(cancel_futures=True)


def begin_process(prepare: Callable[[], None]) -> None:
    """Prepare, and do not outlive the process that gives the work, however it ended.

    What the keyboard sends goes to all; the parent alone answers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def missing(stages: Sequence[Stage], known: dict[Key, Row]) -> list[Job]:
    """What can be done now and is not known, each run once."""
    wanted: dict[Key, Job] = {}
    for stage in stages:
        for job in (*stage.jobs, *following(stage, known)):
            wanted.setdefault(job.attempt.key, job)
    return [job for key, job in wanted.items() if key not in known]


def following(stage: Stage, known: dict[Key, Row]) -> Sequence[Job]:
    """What follows from a stage whose first runs are all known."""
    keys = [job.attempt.key for job in stage.jobs]
    return stage.follow([known[key] for key in keys]) if all(k in known for k in keys) else ()


def counted(stages: Sequence[Stage], known: dict[Key, Row]) -> tuple[int, int]:
    """Runs that are known, and all; what will follow is counted before it is decided."""
    done: set[Key] = set()
    undone: set[Key] = set()
    undecided = 0
    for stage in stages:
        keys = [job.attempt.key for job in stage.jobs]
        if all(key in known for key in keys):
            keys += [job.attempt.key for job in following(stage, known)]
        else:
            undecided += stage.followers
        done |= {key for key in keys if key in known}
        undone |= {key for key in keys if key not in known}
    return len(done), len(done) + len(undone) + undecided


def typical_seconds(known: dict[Key, Row]) -> float:
    """How long a run takes, of those that ended."""
    times = [row["seconds"] for row in known.values() if "seconds" in row]
    return statistics.fmean(times) if times else 0.0
