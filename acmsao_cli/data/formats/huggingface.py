"""A data set that the `datasets` library saved with `save_to_disk`; nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import Example, ImageExample, Problem
from acmsao_cli.data.files import open_regular, printable, reason
from acmsao_cli.data.images import open_picture, probe
from acmsao_cli.data.pictures import SEVERAL_FRAMES, caption_of, open_unchanged
from acmsao_cli.data.records import read_text, text_of
from acmsao_cli.data.registry import data_format
from acmsao_cli.data.source import Source
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Stamp, stamp_at

SPLITS_FILE = PurePosixPath("dataset_dict.json")
STATE_FILE = "state.json"
TABLE_FILES = {PurePosixPath("dataset_info.json"), PurePosixPath(STATE_FILE)}
SPLIT = "train"


def is_saved(source: Source) -> bool:
    """What `save_to_disk` leaves of a Dataset or a DatasetDict."""
    return SPLITS_FILE in source.files or set(source.files) >= TABLE_FILES


@data_format(
    "huggingface",
    kind="images",
    wants="a folder that `datasets` saved with save_to_disk",
    matches=is_saved,
    settings=("image_column", "caption_column"),
)
def read_saved(source: Source, section: ImageData) -> Iterator[Example | Problem]:
    """Every row of the data set, or of its split `train`."""
    columns = (section.image_column, section.caption_column)
    table = _columns(source, _load(source), columns)
    for row, values in enumerate(table):
        name = f"row {row}"
        place = f"{printable(source.name)} {name}"
        try:
            caption = caption_of(text_of(values[columns[1]], place, columns[1]), place)
            content = _content(source, values[columns[0]], place)
            stamp = stamp_at(content) if isinstance(content, Path) else ()
            found = probe(content, place)
        except DataError as error:
            yield Problem.of(place, error, name)
            continue
        if found.animated:
            yield Problem(place, SEVERAL_FRAMES, severity="warning", name=name)
        path = content if isinstance(content, Path) else None
        yield ImageExample(
            place,
            caption,
            Row(source, table, row, columns[0], place, stamp),
            (found.height, found.width),
            path=path,
            encoded=partial(_encoded, source, table, row, columns[0], place),
            name=name,
            stamp=stamp,
        )


def _load(source: Source) -> Any:
    """The saved table, memory-mapped."""
    if not is_saved(source):
        raise DataError(
            f"{source.name}: not a saved data set; it holds {source.contents()}",
            hint="make one with `datasets`: load_dataset(...).save_to_disk(FOLDER)",
        )
    inside = PurePosixPath(_split(source) if SPLITS_FILE in source.files else "")
    _require_plain_files(source, inside)
    folder = source.root / inside
    import datasets  # half a second, and only this format needs it

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # arrow and json have their own trees of errors
        raise DataError(f"{source.name}: cannot be loaded: {reason(error)}") from error


def _require_plain_files(source: Source, folder: PurePosixPath) -> None:
    """Refuse what the library would wait for, and tables that lie elsewhere. Raises DataError."""
    for file in (file for file in source.files if file.parent == folder):
        with open_regular(source.path(file), source.place(file)):
            pass
    place = source.place(folder / STATE_FILE)
    try:
        tables = json.loads(read_text(source, folder / STATE_FILE))["_data_files"]
        names = [text_of(table["filename"], place, "filename") for table in tables]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{place}: no list of tables: {reason(error)}") from error
    for name in names:
        if PurePosixPath(name).name != name or folder / name not in source.files:
            raise DataError(
                f"{place}: the table {printable(name)} is not beside it",
                hint="save the data set again with save_to_disk",
            )


def _split(source: Source) -> str:
    """The folder of the split to train on: `train`, or the only one there is."""
    place = source.place(SPLITS_FILE)
    try:
        splits = json.loads(read_text(source, SPLITS_FILE))["splits"]
        names = [text_of(name, place, "splits") for name in splits]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{place}: no list of splits: {reason(error)}") from error
    chosen = names[0] if len(names) == 1 else SPLIT
    if chosen not in names or Path(chosen).name != chosen:
        raise DataError(
            f"{source.name}: no split `{SPLIT}`; there are: {printable(', '.join(names))}",
            hint=f"save one split, or name it: --set data.source={source.name}/SPLIT",
        )
    return chosen


def _columns(source: Source, table: Any, columns: tuple[str, str]) -> Any:
    """The table cut to picture and caption, its pictures left encoded."""
    import datasets

    for setting, column in zip(("image_column", "caption_column"), columns, strict=True):
        if column not in table.column_names:
            there = printable(", ".join(table.column_names))
            raise DataError(
                f"{source.name}: no column `{column}`; there are: {there}",
                hint=f"--set data.{setting}=COLUMN",
            )
    table = table.select_columns(list(dict.fromkeys(columns)))
    if isinstance(table.features[columns[0]], datasets.Image):
        table = table.cast_column(columns[0], datasets.Image(decode=False))
    return table


def _content(source: Source, value: object, place: str) -> bytes | Path:
    """An encoded picture, or where it lies in the data folder."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise DataError(f"{place}: the column `data.image_column` holds no picture")
    path = source.root / value
    if not source.contains(path):
        raise DataError(f"{place}: the picture is outside the data folder: {printable(value)}")
    return path


def _encoded(source: Source, table: Any, row: int, column: str, place: str) -> bytes:
    content = _content(source, table[row][column], place)
    return content if isinstance(content, bytes) else content.read_bytes()


@dataclass(frozen=True)
class Row:
    """Opens the picture of a row; another process is sent the picture, not the table."""

    source: Source
    table: Any
    row: int
    column: str
    place: str
    stamp: Stamp

    def __call__(self) -> Image.Image:
        """Raises DataError, as does pickling."""
        return self.opener()()

    def __reduce__(self) -> tuple[Any, ...]:
        """What stands for it once it is pickled."""
        return self.opener().__reduce__()  # type: ignore[return-value]

    def opener(self) -> partial[Image.Image]:
        """Of the picture itself, read from the table now."""
        content = _content(self.source, self.table[self.row][self.column], self.place)
        if isinstance(content, Path):
            return partial(open_unchanged, content, self.place, self.stamp)
        return partial(open_picture, content, self.place)
