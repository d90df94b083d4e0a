"""A folder of pictures, each with its caption in a .txt file of the same name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath

from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import Example, Problem
from acmsao_cli.data.files import printable
from acmsao_cli.data.images import PICTURE_SUFFIXES
from acmsao_cli.data.pictures import (
    FOREIGN_SUFFIXES,
    MAX_CAPTION_BYTES,
    caption_of,
    picture,
)
from acmsao_cli.data.records import read_text
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError


def stem(file: PurePosixPath) -> str:
    """The path without its suffix, composed: macOS writes é as two characters, others as one."""
    return unicodedata.normalize("NFC", str(file.with_suffix("")))


def has_captions(source: Source) -> bool:
    """Pictures with a caption beside them; or pictures alone, so that each lack can be named."""
    pictures = {stem(file) for file in source.with_suffix(*PICTURE_SUFFIXES)}
    texts = {stem(file) for file in source.with_suffix(".txt")}
    described = any(source.with_suffix(".jsonl", ".arrow"))
    return not source.single and bool(pictures & texts or (pictures and not described))


@data_format(
    "captions",
    kind="images",
    wants="a folder of pictures, each with a .txt caption of the same name",
    matches=has_captions,
)
def read_captions(source: Source, section: ImageData) -> Iterator[Example | Problem]:
    """Every picture below the folder with the caption beside it."""
    captions: dict[str, list[PurePosixPath]] = {}
    for file in source.with_suffix(".txt"):
        captions.setdefault(stem(file), []).append(file)
    owners: dict[str, PurePosixPath] = {}
    folded: dict[str, PurePosixPath] = {}
    for file in source.with_suffix(*PICTURE_SUFFIXES):
        place = source.place(file)
        texts = captions.get(stem(file), [])
        owner = owners.setdefault(stem(file), file)
        alike = folded.setdefault(stem(file).casefold(), file)
        if owner != file and len(texts) == 1:
            other = printable(owner.name)
            message = f"has the same caption file as {other}; each needs its own"
            yield Problem(place, message, name=str(file))
            continue
        if stem(alike) != stem(file):
            other = printable(alike.name)
            message = f"differs from {other} in case alone; rename one of the two"
            yield Problem(place, message, name=str(file))
            continue
        if len(texts) != 1:
            names = printable(" and ".join(text.name for text in texts))
            missing = f"there is no caption {printable(file.stem)}.txt beside it"
            message = f"has several captions: {names}" if texts else missing
            yield Problem(place, message, name=str(file))
            continue
        try:
            text_place = source.place(texts[0])
            caption = caption_of(read_text(source, texts[0], MAX_CAPTION_BYTES), text_place)
        except DataError as error:
            yield Problem.of(text_place, error, str(file))
            continue
        yield from picture(source, file, place, caption)
    for name in captions.keys() - owners.keys():
        for file in captions[name]:
            yield Problem(source.place(file), "belongs to no picture", severity="warning")
    for file in source.with_suffix(*FOREIGN_SUFFIXES):
        yield Problem(source.place(file), "not read: save it as PNG or JPEG", severity="warning")
    yield from source.unused(".txt", *PICTURE_SUFFIXES, *FOREIGN_SUFFIXES)
