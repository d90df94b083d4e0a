"""What a run is made from, item by item, so that a change is noticed.

Bytes are hashed once: a stamp (size, times of the last change of content and of the file, inode)
tells whether a file may have been written to since.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

# Nobody can set the time of a file's last change (ctime) back, as one can that of its content.
Stamp: TypeAlias = tuple[int, ...]

CHUNK_BYTES: Final = 2**20


class Kind(StrEnum):
    """What a run is made from; any of it may have changed when the run goes on."""

    model = "model"
    data = "data"
    recipe = "recipe"


@dataclass(frozen=True)
class Item:
    """A file, or an example: `size` and `sha256` of its bytes, if it has any.

    `says` is a hash of the words that belong to it. Stamps take no part in a comparison.
    """

    size: int = 0
    sha256: str = ""
    says: str = ""
    stamp: Stamp = field(default=(), compare=False)


# By name, in an order that counts.
Manifest: TypeAlias = Mapping[str, Item]


@dataclass(frozen=True)
class Difference:
    """The names of items that two manifests do not agree on; none where only the order differs."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def nothing() -> None:
    """What is done between two chunks, where nothing is."""


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return sha256_of(stream)


def sha256_of(stream: BinaryIO, between: Callable[[], None] = nothing) -> str:
    """Hex digest of what is left of a stream; `between` is called before each chunk is hashed."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        between()
        digest.update(chunk)
    return digest.hexdigest()


def hash_of_words(words: object) -> str:
    """Hex digest of texts, or of lists of them."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def stamp_of(found: os.stat_result) -> Stamp:
    """What changes with every write."""
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def stamp_at(path: Path) -> Stamp:
    """The stamp of a file; empty where it is gone: who reads it will say so."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return ()


def read_item(
    stream: BinaryIO,
    known: Item | None = None,
    says: str = "",
    between: Callable[[], None] = nothing,
) -> Item:
    """The item of a file opened for reading; not read if it still has the stamp of the `known`.

    One that changes while it is read gets no stamp, so that it is read again another time.
    """
    stamp = stamp_of(os.fstat(stream.fileno()))
    if known is not None and known.stamp == stamp:
        return replace(known, says=says)
    digest = sha256_of(stream, between)
    still = stamp_of(os.fstat(stream.fileno())) == stamp
    return Item(stamp[0], digest, says, stamp if still else ())


def digest(manifest: Manifest) -> str:
    """One hash over every item, in order."""
    whole = hashlib.sha256()
    for name, item in manifest.items():
        whole.update(json.dumps([name, item.size, item.sha256, item.says]).encode())
    return whole.hexdigest()


def difference(before: Manifest, now: Manifest) -> Difference:
    """What became of the items of `before`."""
    return Difference(
        changed=tuple(name for name in before if name in now and now[name] != before[name]),
        added=tuple(name for name in now if name not in before),
        removed=tuple(name for name in before if name not in now),
    )


def as_json(manifest: Manifest) -> str:
    """An object with a line for each item."""
    lines = (f"{json.dumps(name)}: {json.dumps(_plain(item))}" for name, item in manifest.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _plain(item: Item) -> dict[str, Any]:
    values = {"size": item.size, "sha256": item.sha256, "says": item.says, "stamp": item.stamp}
    return {key: value for key, value in values.items() if value}


def from_json(values: object) -> dict[str, Item]:
    """What `as_json` gave, parsed; empty where it is something else."""
    if not isinstance(values, dict):
        return {}
    try:
        return {str(name): _item(**entry) for name, entry in values.items()}
    except (TypeError, ValueError):
        return {}


def _item(size: int = 0, sha256: str = "", says: str = "", stamp: Sequence[int] = ()) -> Item:
    return Item(int(size), str(sha256), str(says), tuple(int(number) for number in stamp))
