"""Opening files that strangers made: regular files only, bounded, every failure a DataError."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path
from typing import BinaryIO

from acmsao_cli.errors import DataError


def printable(text: str, limit: int = 200) -> str:
    """`text` without control and bidi characters: a file's name cannot drive a terminal."""
    clean = "".join("?" if unicodedata.category(c).startswith("C") else c for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def reason(error: BaseException) -> str:
    """The words of an exception, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split())) or type(error).__name__


def text_of(path: Path) -> str:
    """What stands in a regular file; bytes that are no UTF-8 are replaced. Raises OSError."""
    try:
        with open_regular(path, str(path)) as stream:
            return stream.read().decode("utf-8", errors="replace")
    except DataError as error:
        raise OSError(error.message) from error


def open_regular(path: Path, place: str) -> BinaryIO:
    """Open for reading what must be a regular file; a pipe or a device would never end."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: cannot be opened: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{place}: not a regular file")
    return os.fdopen(descriptor, "rb")
