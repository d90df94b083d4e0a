"""Outputs appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from acmsao_cli.errors import OutputError


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or folder to; it takes `path`'s place at the end.

    What was at `path` stays until then, and stays if the block raises. Raises OutputError where
    the file system does not go along.
    """
    stage = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(stage)
        try:
            yield stage
            if path.is_dir():
                remove(path)
            os.replace(stage, path)
        finally:
            remove(stage)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the free space and the permissions there",
        ) from error


def remove(path: Path) -> None:
    """Delete a file or folder if it is there; a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
