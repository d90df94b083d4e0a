"""What the picture formats share: an example from a file's header, and what its caption may be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from acmsao_cli.data.base import Example, ImageExample, Problem
from acmsao_cli.data.images import open_picture, probe
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

MAX_CAPTION_BYTES = 64 * 1024
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
    try:
        found = probe(path, place)
    except DataError as error:
        yield Problem.of(place, error)
        return
    if found.animated:
        yield Problem(place, "has several frames; the first is used", severity="warning")
    opener = partial(open_picture, path, place)
    yield ImageExample(place, caption, opener, (found.height, found.width), path, name=str(file))
