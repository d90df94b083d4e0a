"""Bytes are hashed once, and again when a file may have been written to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acmsao_cli.identity import Item, as_json, digest, from_json, read_item, sha256, stamp_at


def item_of(file: Path, known: Item | None = None) -> Item:
    with file.open("rb") as stream:
        return read_item(stream, known, "words")


def test_an_unchanged_stamp_is_trusted_and_another_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    found = item_of(file)
    assert found == Item(7, sha256(file), "words")
    assert found.stamp == stamp_at(file)
    trusted = Item(7, "not read", "", found.stamp)
    assert item_of(file, trusted).sha256 == "not read"
    file.touch()
    assert item_of(file, trusted) == found
    assert stamp_at(tmp_path / "gone") == ()


def test_size_and_time_put_back_do_not_hide_a_write(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    found, before = item_of(file), file.stat()
    file.write_bytes(b"Content")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (7, before.st_mtime_ns)
    assert item_of(file, found) != found


def test_a_file_that_changes_while_it_is_read_is_read_again_another_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with file.open("rb") as stream:
        found = read_item(stream, between=lambda: os.utime(file, ns=(0, 0)))
    assert found.stamp == ()


@pytest.mark.parametrize("change", [{"size": 2}, {"sha256": "x"}, {"says": "x"}])
def test_one_hash_stands_for_every_item_and_their_order(change: dict[str, object]) -> None:
    one, two = Item(1, "a", "b", (1, 2)), Item(1, "a", "c")
    whole = digest({"one": one, "two": two})
    assert whole == digest({"one": Item(1, "a", "b", (3,)), "two": two}), "stamps do not count"
    assert whole != digest({"two": two, "one": one})
    assert whole != digest({"One": one, "two": two})
    values = {"size": 1, "sha256": "a", "says": "b"} | change
    assert whole != digest({"one": Item(**values), "two": two})  # type: ignore[arg-type]


def test_items_come_back_from_json_and_what_is_none_is_nothing() -> None:
    items = {"a\udcff.png": Item(3, "a", "b", (1, 2, 3, 4)), "b:1": Item(says="c")}
    back = from_json(json.loads(as_json(items)))
    assert back == items
    assert [item.stamp for item in back.values()] == [(1, 2, 3, 4), ()]
    for wrong in ([], {"a": 1}, {"a": {"stamp": "x"}}, {"a": {"b": 1}}, {"a": {"size": []}}):
        assert from_json(wrong) == {}
