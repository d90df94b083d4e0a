"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from acmsao_cli.errors import OutputError


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing at `place` into OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot write to {place}: {reason}",
            hint="free some space or choose another folder with --output",
        ) from None


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


def write_whole(file: Path, content: str | bytes) -> None:
    """Replace `file` by `content` in one step. Raises OutputError."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(f".{file.name}.tmp")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        flushed(temporary)
        os.replace(temporary, file)
        flush_folder(file.parent)


def publish(folder: Path) -> None:
    """Make everything in `folder` durable, and readable as files of this user usually are.

    The safetensors writers leave files that only their owner can read.
    """
    usual = 0o666 & ~current_umask()
    with writing(folder):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                path.chmod(usual)
                flushed(path)
        flush_folder(folder)


def current_umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
