"""A folder with metadata.jsonl: one object per picture, its file and its caption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import Example, Problem
from acmsao_cli.data.files import printable
from acmsao_cli.data.images import PICTURE_SUFFIXES
from acmsao_cli.data.pictures import caption_of, picture
from acmsao_cli.data.records import Record, first_records, keys_of, records, text_of
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError

FILE_KEY = "file_name"
# The first that a row has is its caption.
CAPTION_KEYS = ("text", "caption", "prompt")


def tables(source: Source) -> list[PurePosixPath]:
    """The metadata files: metadata.jsonl in any folder, or the one .jsonl file that was named."""
    return [
        file
        for file in source.with_suffix(".jsonl")
        if source.single or file.name == "metadata.jsonl"
    ]


def is_described(source: Source) -> bool:
    """A metadata.jsonl somewhere, or the one .jsonl file that was named if it speaks of files."""
    named = any(file.name == "metadata.jsonl" for file in source.files)
    return named or (source.single and any(FILE_KEY in fields for fields in first_records(source)))


@data_format(
    "metadata",
    kind="images",
    wants="a folder with metadata.jsonl: {file_name, text} for each picture",
    matches=is_described,
)
def read_metadata(source: Source, section: ImageData) -> Iterator[Example | Problem]:
    """Every row's picture; file names are relative to the folder of their metadata.jsonl."""
    seen: dict[PurePosixPath, str] = {}
    for table in tables(source):
        for row in records(source, table):
            if isinstance(row, Problem):
                yield row
                continue
            try:
                key = _caption_key(row)
                file = _file(source, row)
            except DataError as error:
                yield Problem.of(row.place, error, row.name)
                continue
            try:
                caption = caption_of(text_of(row.fields[key], row.place, key), row.place)
            except DataError as error:
                yield Problem.of(row.place, error, str(file))
                continue
            if file in seen:
                message = f"`{printable(str(file))}` was described before, at {seen[file]}"
                yield Problem(row.place, message, name=row.name)
                continue
            seen[file] = row.place
            yield from picture(source, file, _beside(source, file), caption)
    if source.single:
        return
    for file in source.with_suffix(*PICTURE_SUFFIXES):
        if file not in seen:
            yield Problem(source.place(file), "not in metadata.jsonl", severity="warning")
    yield from source.unused(".jsonl", *PICTURE_SUFFIXES)


def _caption_key(row: Record) -> str:
    """Under which key a row has its caption. Raises DataError where it or the file is not there."""
    key = next((key for key in CAPTION_KEYS if key in row.fields), None)
    if FILE_KEY not in row.fields or key is None:
        lacking = f"`{FILE_KEY}`" if key else "caption: `text`, `caption` or `prompt`"
        raise DataError(f"{row.place}: no {lacking}; its keys are {keys_of(row.fields)}")
    return key


def _file(source: Source, row: Record) -> PurePosixPath:
    """The picture of a row, relative to the source's root."""
    name = text_of(row.fields[FILE_KEY], row.place, FILE_KEY)
    relative = PurePosixPath(name)
    if not name or "\0" in name or relative.is_absolute() or PureWindowsPath(name).is_absolute():
        raise DataError(f"{row.place}: `{FILE_KEY}` must be a path relative to this file's folder")
    file = row.file.parent / relative
    if ".." in relative.parts or not source.contains(source.path(file)):
        raise DataError(f"{row.place}: `{FILE_KEY}` leaves the data folder: {printable(name)}")
    return file


def _beside(source: Source, file: PurePosixPath) -> str:
    """The place of a picture; a metadata file that was named alone stands for its folder."""
    if not source.single:
        return source.place(file)
    return printable(str(PurePosixPath(source.name).parent / file))
