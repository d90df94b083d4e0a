"""Writing so that a crash leaves the old file or folder or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from acmsao_cli.errors import OutputError

ELSEWHERE = "check the free space and the permissions there, or write to another place"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn refusals while writing at `place` into OutputError: the system's, and safetensors'."""
    try:
        yield
    except _refusals() as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot write to {place}: {reason}",
            hint=ELSEWHERE,
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
            settle(stage)
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
    # "x": a link that was put there meanwhile is not followed.
    with staged(file) as stage, stage.open("xb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


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


def own_folder(path: Path) -> Path:
    """`path`, a folder that is made if it is not there; a link to one is refused.

    Raises OutputError. The folders above may be links: whoever named them chose them.
    """
    refuse_link(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise OutputError if `path` is a link: what is written to it would land elsewhere."""
    if path.is_symlink():
        raise OutputError(
            f"cannot write to {path}: it is a link, and nothing is written through one",
            hint="put a folder in its place, or take another run folder with --output",
        )


def open_to_append(file: Path) -> IO[str]:
    """The text file itself, made if it is not there: never what a link of its name points to.

    Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(file, flags, 0o666), "a+", encoding="utf-8")


def append_whole(descriptor: int, content: bytes, size: int) -> None:
    """Append to a file of `size` whole bytes; what comes of `content` in part is cut off again.

    Raises OSError.
    """
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def require_writable(place: Path) -> None:
    """Raise OutputError if nothing can be written where `place` is, or will be; writes nothing."""
    with writing(place):
        there = nearest_folder(place)
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
        raise OutputError(f"cannot write to {place}: {reason}", hint=ELSEWHERE)


def probe(folder: Path) -> None:
    """Raise OutputError unless a file in `folder` can be made, settled, renamed and removed."""
    name, renamed = folder / ".probe.part", folder / ".probe.whole"
    with writing(folder):
        for left in (name, renamed):  # by a probe that was killed
            left.unlink(missing_ok=True)
        try:
            with name.open("xb") as stream:
                stream.write(b"probe")
            flushed(name)
            os.replace(name, renamed)
            renamed.unlink()
        finally:
            with suppress(OSError):
                name.unlink(missing_ok=True)


def nearest_folder(place: Path) -> Path:
    """`place` if it is a folder, else the nearest one above."""
    return next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())


def require_space(place: Path, nbytes: int, what: str) -> None:
    """Raise OutputError unless so many bytes are free where `place` is, or will be."""
    with writing(place):
        free = shutil.disk_usage(nearest_folder(place)).free
    if nbytes > free:
        raise OutputError(
            f"{what} needs {nbytes / 2**20:.1f} MiB in {place}, where {free / 2**20:.1f} are free",
            hint="free some space, keep fewer checkpoints (checkpoint.keep), or write elsewhere "
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


def settle(path: Path) -> None:
    """Make a file or folder durable, and readable as files of this user usually are.

    The libraries' writers leave files that only their owner can read. A link is left alone.
    """
    if path.is_symlink():
        return
    if path.is_dir():
        for inner in path.iterdir():
            settle(inner)
        flush_folder(path)
    else:
        ordinary(path)
        flushed(path)


def ordinary(file: Path) -> Path:
    """`file`, with the permissions of files of this user."""
    file.chmod(0o666 & ~_umask())
    return file


UMASK = re.compile(r"^Umask:\s*([0-7]+)$", re.MULTILINE)


def _umask() -> int:
    """The process's umask. Elsewhere than on Linux it can only be read by setting it, which files
    that another thread makes meanwhile are subject to.
    """
    with suppress(OSError):
        if told := UMASK.search(Path("/proc/self/status").read_text(encoding="ascii")):
            return int(told[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    """Delete a file or folder if it is there; a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
