"""Processes that open pictures ahead of whoever wants them: results in order, a few at a time.

Each is a fresh interpreter at the other end of a pipe: it inherits nothing, and imports only what
its work needs. The pipe tells of every end: a worker that died hung up with an item in hand, and
one whose parent is gone reads no more work.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, Generic, TypeVar

from acmsao_cli.errors import DataError, WorkerError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Seconds after which a worker that has not answered is taken to hang. They are counted in slices:
# who was stopped for an hour has waited for one of them.
PATIENCE = 300.0
SLICE: Final = 1.0
# Items for each worker that may be begun before the one that is wanted has been taken.
AHEAD: Final = 2
# A worker that cannot even be killed waits for a disk that is gone; nobody waits longer for it.
TO_END: Final = 5.0

# What a terminal, a batch system or a user sends to all processes of a run: the parent answers.
SHARED_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A worker does one thing at a time, and the threads of numerical libraries would cost it memory.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PR_SET_PDEATHSIG: Final = 1  # of prctl(2)

ANEW: Final = "nothing is lost: the same command goes on"


@dataclass(frozen=True)
class Job(Generic[T_co]):
    """What is to be done for the item at `place`; the work and its result can be pickled."""

    place: str
    work: Callable[[], T_co]


@contextmanager
def in_order(jobs: Sequence[Job[T]], workers: int) -> Iterator[Iterator[T | DataError]]:
    """What becomes of each job, in their order, made by so many processes; by this one if none.

    The iterator raises WorkerError where a worker died or gives no answer. Leaving the context ends
    them all.
    """
    if not workers:
        yield (attempt(job.work) for job in jobs)
        return
    crew = Crew(jobs)
    try:
        while len(crew.workers) < min(workers, len(jobs)):
            crew.workers.append(start())
        yield crew.results()
    finally:
        crew.end()


def attempt(work: Callable[[], T]) -> T | DataError:
    """The work's result; what is wrong with its item is one too."""
    try:
        return work()
    except DataError as error:
        return error


# The parent's side


@dataclass
class Worker:
    """Another process, this end of its pipe, and the number of the job it has."""

    process: subprocess.Popen[bytes]
    connection: Connection
    has: int | None = None

    def give(self, number: int, job: Job[Any]) -> None:
        """Raises WorkerError if nobody takes it, and DataError as pickling the work does."""
        work = ForkingPickler.dumps(job.work)
        try:
            self.connection.send_bytes(work)
        except OSError:
            raise died(self.ended(), None) from None
        self.has = number

    def take(self, place: str) -> Any:
        """What it made of the item at `place`, which it has; raises WorkerError if it died of it.

        What nobody foresaw there is raised here.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise died(self.ended(), place) from None
        self.has = None
        if isinstance(answer, Raised):
            raise answer.here()
        return answer

    def ended(self) -> int:
        """The exit code, or less than 0 a signal's number, of a worker that hung up."""
        try:
            return self.process.wait(TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(TO_END)


@dataclass
class Crew(Generic[T]):
    """The workers, which jobs were given out, and the results that nobody has taken yet."""

    jobs: Sequence[Job[T]]
    workers: list[Worker] = field(default_factory=list)
    given: int = 0
    ready: dict[int, T | DataError] = field(default_factory=dict)

    def results(self) -> Iterator[T | DataError]:
        """One for each job, in their order; what follows is worked on meanwhile."""
        for number in range(len(self.jobs)):
            self.wait_for(number)
            yield self.ready.pop(number)

    def wait_for(self, wanted: int) -> None:
        """Until the job's result is ready and everybody who can has work.

        Raises WorkerError where that takes longer than PATIENCE.
        """
        waited = 0.0
        while True:
            self.give_out(min(len(self.jobs), wanted + AHEAD * len(self.workers)))
            there = wanted in self.ready
            answered = self.gather(0.0 if there else SLICE)
            if there and not answered:
                return
            waited += 0.0 if answered else SLICE
            if waited >= PATIENCE:
                raise hangs(self.jobs[wanted].place)

    def give_out(self, end: int) -> None:
        """Jobs before `end` to whoever has none."""
        idle = [worker for worker in self.workers if worker.has is None]
        while idle and self.given < end:
            try:
                idle[-1].give(self.given, self.jobs[self.given])
                idle.pop()
            except DataError as error:  # the row of a table is read when it is sent
                self.ready[self.given] = error
            self.given += 1

    def gather(self, seconds: float) -> bool:
        """Take the answers that come within that time; whether there was one."""
        busy = [worker for worker in self.workers if worker.has is not None]
        answered = wait([worker.connection for worker in busy], seconds)
        for worker in busy:
            if worker.connection in answered and worker.has is not None:
                number = worker.has
                self.ready[number] = worker.take(self.jobs[number].place)
        return bool(answered)

    def end(self) -> None:
        """All workers, at once: they have nothing that could be lost."""
        for worker in self.workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(TO_END)


def start() -> Worker:
    """A new interpreter that serves. Raises WorkerError if there cannot be one."""
    ours, theirs = Pipe()
    command = f"from {__name__} import serve; serve({theirs.fileno()}, {os.getpid()})"
    search = os.pathsep.join(path for path in sys.path if path)
    # -P: modules that lie in the current folder, which may be a stranger's, are not imported.
    # It begins with these signals held back, and ignores them before it lets them in.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHARED_SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": search},
        )
    except OSError as error:
        raise WorkerError(
            f"a data worker cannot be started: {error.strerror}",
            hint=f"--set data.workers=0 needs none; {ANEW}",
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return Worker(process, ours)


def died(code: int, place: str | None) -> WorkerError:
    """The error of a worker that ended so, with the item at `place` or none in hand."""
    who = "a data worker" if place is None else f"{place}: the data worker that had it"
    if code == -signal.SIGKILL:
        return WorkerError(
            f"{who} was killed by signal 9, likely out of memory",
            hint=f"fewer data.workers need less, --set data.workers=0 least; {ANEW}",
        )
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return WorkerError(f"{who} {how}", hint=f"if it happens again, remove the item; {ANEW}")


def hangs(place: str) -> WorkerError:
    """The error of a worker that gives no answer."""
    return WorkerError(
        f"{place}: the data worker that has it gave no answer for {PATIENCE:g} seconds",
        hint=f"does its disk answer? else remove the item; {ANEW}",
    )


# The worker's side


@dataclass(frozen=True)
class Raised:
    """An exception that is no DataError: its words and its traceback."""

    words: str
    trace: str
    memory: bool

    @staticmethod
    def of(error: Exception) -> Raised:
        """As it is being handled."""
        words = f"{type(error).__name__}: {error}"
        return Raised(words, traceback.format_exc(), isinstance(error, MemoryError))

    def here(self) -> Exception:
        """For the parent to raise."""
        error = MemoryError(self.words) if self.memory else RuntimeError(self.words)
        error.add_note(f"in a data worker:\n{self.trace}")
        return error


def serve(descriptor: int, parent: int) -> None:
    """Do what comes through the pipe, one after another, until the parent hangs up."""
    for number in SHARED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SHARED_SIGNALS)
    die_with(parent)
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        while True:
            work = connection.recv()
            connection.send(answer(work))


def die_with(parent: int) -> None:
    """Where the system can do it: a worker that hangs would not see the pipe's end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had died before
            sys.exit()


def answer(work: Callable[[], T]) -> T | DataError | Raised:
    """What came of the work."""
    try:
        return attempt(work)
    except Exception as error:
        return Raised.of(error)
