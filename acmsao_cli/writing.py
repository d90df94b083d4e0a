"""Writing so that a crash leaves the old file or folder or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from acmsao_cli.errors import OutputError


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn refusals while writing at `place` into OutputError: the system's, and safetensors'."""
    try:
        yield
    except _refusals() as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot write to {place}: {reason}",
            hint="check the free space and the permissions there, or write to another place",
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """Looked up once something failed: the command line writes without loading safetensors."""
    from safetensors import SafetensorError

    return OSError, SafetensorError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or folder to; it takes `path`'s place at the end.

    What was at `path` stays until then, and stays if the block raises. The new one has reached the
    disk before it has its name. Raises OutputError where the file system does not go along.
    """
    stage = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(stage)
        try:
            yield stage
            _settle(stage)
            if path.is_dir():
                if not stage.is_dir():
                    raise in_the_way(path)
                _remove(path)
            os.replace(stage, path)
            flush_folder(path.parent)
        finally:
            _remove(stage)


def write_whole(file: Path, content: str | bytes) -> None:
    """Replace `file` by `content` in one step. Raises OutputError, also where a folder is there."""
    if file.is_dir():  # before its name is asked for: `.` has none
        raise in_the_way(file)
    with staged(file) as stage:
        stage.write_bytes(content.encode() if isinstance(content, str) else content)


class HashedFile:
    """What is written to `file` from here on, with the SHA-256 and the number of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.num_bytes = 0
        self._sha = hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        """Append to the file. Raises OSError."""
        self.file.write(content)
        self._sha.update(content)
        self.num_bytes += len(content)

    @property
    def digest(self) -> str:
        """In hex, of all that was written."""
        return self._sha.hexdigest()


def in_the_way(path: Path) -> OutputError:
    """The error of a folder where a file is to be: what is in it is never taken away for that."""
    return OutputError(
        f"cannot write to {path}: it is a folder", hint="name a file, in it or elsewhere"
    )


def require_space(place: Path, nbytes: int, what: str) -> None:
    """Raise OutputError unless so many bytes are free where `place` is, or will be."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    with writing(place):
        free = shutil.disk_usage(there).free
    if nbytes > free:
        raise OutputError(
            f"{what} needs {nbytes / 2**20:.1f} MiB in {place}, where {free / 2**20:.1f} are free",
            hint="free some space, keep fewer with --set checkpoint.keep=1, or write elsewhere "
            "with --output",
        )


def vacant(path: Path) -> Path:
    """`path`, absolute, unless something is there; an empty folder is nothing. Else OutputError."""
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty:
        raise OutputError(
            f"{path} is there already, and nothing is ever overwritten",
            hint="name another place, or remove it",
        )
    return path.resolve()


def flushed(file: Path) -> Path:
    """`file`, once its bytes are on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return file


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(path: Path) -> None:
    """Make a file or folder durable, and readable as files of this user usually are.

    The libraries' writers leave files that only their owner can read.
    """
    if path.is_symlink():
        return
    if path.is_dir():
        for inner in path.iterdir():
            _settle(inner)
        flush_folder(path)
    else:
        path.chmod(0o666 & ~_umask())
        flushed(path)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    """Delete a file or folder if it is there; a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
