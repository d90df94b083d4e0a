"""One process at a time in a folder, by a lock that dies with the process."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from acmsao_cli.errors import OutputError, RunLockedError
from acmsao_cli.writing import open_to_append, writing

# How long to wait for the words of a holder that has only just taken the lock.
PATIENCE, PAUSE = 0.5, 0.02
ATTEMPTS = 100

_held: set[int] = set()


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Hold `folder`, which is made if it is not there, by a lock on the file `name` in it.

    The file says who holds it, for people; only the kernel's lock counts. Raises RunLockedError
    where a living process has it, OutputError where the file system has no locks.
    """
    stream = _taken(folder, name)
    descriptor = stream.fileno()
    _held.add(descriptor)
    try:
        with writing(folder):
            stream.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            stream.write(f"{os.getpid()} on {socket.gethostname()} since {since}\n")
            stream.flush()
        yield
    finally:
        with suppress(OSError), stream:
            stream.truncate(0)
        _held.discard(descriptor)


def _taken(folder: Path, name: str) -> IO[str]:
    """The locked file; one that a run which wrote nothing takes away meanwhile does not count."""
    for _ in range(ATTEMPTS):
        with writing(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stream = open_to_append(folder / name)
            except (FileNotFoundError, FileExistsError):
                if folder.is_dir() or not os.path.lexists(folder):
                    continue
                raise
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stream:
                raise _in_use(folder, stream) from None
        except OSError as error:
            stream.close()
            raise OutputError(
                f"{folder} cannot be locked: {error.strerror}",
                hint="choose a folder on a local disk with --output",
            ) from None
        if _is_at(folder / name, stream):
            return stream
        stream.close()
    raise OutputError(
        f"{folder} cannot be locked: it is taken away again and again",
        hint="choose another folder with --output",
    )


def _is_at(file: Path, stream: IO[str]) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _in_use(folder: Path, stream: IO[str]) -> RunLockedError:
    until = time.monotonic() + PATIENCE
    while not (holder := _words(stream)) and time.monotonic() < until:
        time.sleep(PAUSE)
    return RunLockedError(
        f"{folder} is in use by process {holder or 'unknown'}",
        hint="wait for it, or choose another folder with --output",
    )


def _words(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.readline().strip()


def _let_go_in_child() -> None:
    """A forked child would hold its parent's locks for as long as it lives: longer than the parent.

    The descriptors stay valid, for the streams around them.
    """
    for descriptor in _held:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
