"""What the picture formats share: an example from a file's header, and what its caption may be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from acmsao_cli.data.base import Example, ImageExample, Problem
from acmsao_cli.data.images import open_picture, probe
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Stamp, stamp_at

MAX_CAPTION_BYTES = 64 * 1024
SEVERAL_FRAMES = "has several frames; the first is used"
# Pictures by their names, which Pillow here is not asked to open.
FOREIGN_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".eps", ".raw", ".dng", ".cr2"}
)


def caption_of(text: str, place: str) -> str:
    """`text` with each run of blanks and line ends as one space, as CLIP's tokenizer reads it."""
    if len(text.encode(errors="replace")) > MAX_CAPTION_BYTES:
        raise DataError(f"{place}: the caption is longer than {MAX_CAPTION_BYTES // 1024} KiB")
    if "\0" in text:
        raise DataError(f"{place}: the caption holds a NUL character")
    caption = " ".join(text.split())
    if not caption:
        raise DataError(f"{place}: the caption is empty")
    return caption


def picture(
    source: Source, file: PurePosixPath, place: str, caption: str
) -> Iterator[Example | Problem]:
    """The example of a picture file, by its header; its pixels are first read by `open`."""
    path = source.path(file)
    stamp = stamp_at(path)
    try:
        found = probe(path, place)
    except DataError as error:
        yield Problem.of(place, error, str(file))
        return
    if found.animated:
        yield Problem(place, SEVERAL_FRAMES, severity="warning", name=str(file))
    opener, size = partial(open_unchanged, path, place, stamp), (found.height, found.width)
    yield ImageExample(place, caption, opener, size, path, name=str(file), stamp=stamp)


def open_unchanged(path: Path, place: str, stamp: Stamp) -> Image.Image:
    """Decode a file that is still the one with this stamp, from beginning to end.

    What a run trains on is what its data was found to be when it started. Raises DataError.
    """
    try:
        image = open_picture(path, place)
    except DataError:
        _require_stamp(path, place, stamp)  # why it cannot be decoded any more
        raise
    _require_stamp(path, place, stamp)
    return image


def _require_stamp(path: Path, place: str, stamp: Stamp) -> None:
    now = stamp_at(path)
    if now != stamp:
        raise DataError(
            f"{place}: changed since it was looked at{'' if now else ': it is gone'}",
            hint="start again when nothing writes to the data any more",
        )
