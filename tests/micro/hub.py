"""A stand-in for the hub: one repository, and what was fetched of it."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import pytest


def serve(repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `owner/name` be `repository`; what is fetched of it lands in `cache`."""

    def snapshot_download(
        name: str, revision: str | None, allow_patterns: Sequence[str] | None
    ) -> str:
        assert name == "owner/name"
        for file in repository.rglob("*"):
            path = file.relative_to(repository)
            wanted = allow_patterns is None or any(
                fnmatch.fnmatch(path.as_posix(), pattern) for pattern in allow_patterns
            )
            if file.is_file() and wanted:
                (cache / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / path)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def fetched(cache: Path) -> set[str]:
    """The files that were asked for, relative to the repository."""
    return {file.relative_to(cache).as_posix() for file in cache.rglob("*") if file.is_file()}
