"""A model is known by the content of its files, which may be read while something else goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from acmsao_cli import identity
from acmsao_cli.errors import ModelError
from acmsao_cli.identity import Item, digest
from acmsao_cli.models.base import silent
from acmsao_cli.models.identity import (
    identified_meanwhile,
    identify,
    require_unchanged,
    stamps_of,
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 10)
    return {name: tmp_path / name for name in "ba"}


def test_the_order_in_which_files_are_found_does_not_count(files: dict[str, Path]) -> None:
    found = identify(files, {})
    assert list(found) == ["a", "b"]
    assert digest(found) == digest(identify(dict(reversed(files.items())), found))


def test_what_is_found_meanwhile_is_the_same(files: dict[str, Path]) -> None:
    with identified_meanwhile(files, {}) as wait:
        assert wait(silent) == identify(files, {})


def test_who_does_not_wait_gives_up_what_is_not_read_yet(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left, read = threading.Event(), threading.Event(), []

    def slowly(stream: BinaryIO, between: identity.Callable[[], None]) -> str:
        begun.set()
        assert left.wait(10)
        between()
        read.append(stream.name)
        return ""

    monkeypatch.setattr(identity, "sha256_of", slowly)
    with identified_meanwhile(files, {}):
        assert begun.wait(10)
        threading.Timer(0.05, left.set).start()  # when the block has been left
    assert read == []


def test_a_file_that_is_gone_is_named_when_it_is_waited_for(files: dict[str, Path]) -> None:
    known: dict[str, Item] = identify(files, {})
    files["b"].unlink()
    with (
        identified_meanwhile(files, known) as wait,
        pytest.raises(ModelError, match="/b cannot be read: No such file"),
    ):
        wait(silent)


def test_what_changes_after_it_was_looked_at_is_refused_by_name(files: dict[str, Path]) -> None:
    stamps = stamps_of(files)
    require_unchanged(files, stamps)
    assert digest(identify(files, {}, stamps=stamps)) == digest(identify(files, {}))
    files["b"].write_bytes(b"other")
    with pytest.raises(ModelError, match=r"/b changed since the run looked at it\n"):
        identify(files, {}, stamps=stamps)
    with pytest.raises(ModelError, match=r"/b changed since the run looked at it\n"):
        require_unchanged(files, stamps)
    files["b"].unlink()
    with pytest.raises(ModelError, match=r"/b changed since .*: it is gone"):
        require_unchanged(files, stamps_of(files))


def test_what_is_written_to_while_it_is_hashed_is_refused(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = identity.sha256_of

    def written_to(stream: BinaryIO, between: identity.Callable[[], None]) -> str:
        files["a"].write_bytes(b"other")
        return hashing(stream, between)

    stamps = stamps_of(files)
    monkeypatch.setattr(identity, "sha256_of", written_to)
    with pytest.raises(ModelError, match="/a changed"):
        identify(files, {}, stamps=stamps)
