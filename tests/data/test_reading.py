"""From folders and files to examples: what is found, and what is said of the rest."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acmsao_cli import builtin
from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.base import ImageExample, Message, Problem, Reading, TextExample
from acmsao_cli.data.check import summarise
from acmsao_cli.data.reading import Remaining, bad, read, require
from acmsao_cli.errors import ConfigError, DataError


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def lines(path: Path, *rows: object) -> None:
    write(path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def images(folder: Path, **more: Any) -> Reading:
    return read(ImageData(source=str(folder), **{"resolution": 64, "bucket_step": 8, **more}))


def text(source: Path, **more: Any) -> Reading:
    return read(TextData(source=str(source), **more))


def told(reading: Reading, root: Path) -> set[tuple[str, str, str]]:
    """The problems, their places relative to `root`."""
    return {
        (problem.place.removeprefix(f"{root}/"), problem.message, problem.severity)
        for problem in reading.problems
    }


def captions_of(reading: Reading) -> list[str]:
    assert all(isinstance(example, ImageExample) for example in reading.examples)
    return [example.caption for example in reading.examples if isinstance(example, ImageExample)]


def chats_of(reading: Reading) -> list[list[tuple[str, str]]]:
    return [
        [(message.role, message.content) for message in example.messages or ()]
        for example in reading.examples
        if isinstance(example, TextExample)
    ]


# Pictures with captions beside them


def test_captions_are_found_in_every_folder_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp"):
        picture(tmp_path / name)
        write((tmp_path / name).with_suffix(".txt"), f"\ufeff  a picture\n of {name} ")
    write(tmp_path / ".hidden" / "x.png", b"")
    reading = images(tmp_path)
    assert reading.format == "captions"
    assert captions_of(reading) == [
        f"a picture of {n}" for n in ("a.JPG", "b.png", "deep/er/c.webp")
    ]
    assert reading.problems == ()
    first = require(reading, ImageData(source=str(tmp_path)))[0]
    assert isinstance(first, ImageExample)
    assert first.open().size == (64, 64)
    assert first.size == (64, 64)


def test_what_belongs_to_nothing_is_told(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        picture(tmp_path / name)
    for name in ("a.txt", "lost.txt"):
        write(tmp_path / name, "words")
    write(tmp_path / "b.heic", "?")
    write(tmp_path / "a.npz", "?")
    reading = images(tmp_path)
    assert len(reading.examples) == 1
    assert told(reading, tmp_path) == {
        ("lost.txt", "belongs to no picture", "warning"),
        ("a.png", "has the same caption file as a.jpg; each needs its own", "error"),
        ("b.heic", "not read: save it as PNG or JPEG", "warning"),
        (str(tmp_path), "not used: 1 .npz", "warning"),
    }


def test_names_written_composed_and_decomposed_are_the_same(tmp_path: Path) -> None:
    picture(tmp_path / "cafe\u0301.png")
    write(tmp_path / "caf\u00e9.txt", "coffee")
    assert captions_of(images(tmp_path)) == ["coffee"]


def test_bad_headers_are_problems_and_bad_pixels_are_found_when_opened(tmp_path: Path) -> None:
    for name in ("good", "short", "empty", "text"):
        picture(tmp_path / f"{name}.png", (64, 64))
        write(tmp_path / f"{name}.txt", name)
    whole = (tmp_path / "good.png").read_bytes()
    write(tmp_path / "short.png", whole[: len(whole) // 2])
    write(tmp_path / "empty.png", b"")
    write(tmp_path / "text.png", b"hello")
    reading = images(tmp_path)
    assert told(reading, tmp_path) == {
        ("empty.png", "the file is empty", "error"),
        ("text.png", "not a picture of a known format", "error"),
    }
    short = next(e for e in reading.examples if isinstance(e, ImageExample) and "short" in e.place)
    with pytest.raises(DataError, match=r"short.png: cannot be decoded"):
        short.open()


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def repainted(path: Path) -> None:
    picture(path, (32, 32))


@pytest.mark.parametrize(
    ("change", "more"), [(Path.unlink, ": it is gone"), (shortened, ""), (repainted, "")]
)
def test_a_picture_that_is_not_the_one_that_was_looked_at_is_not_opened(
    tmp_path: Path, change: Callable[[Path], None], more: str
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "words")
    (example,) = images(tmp_path).examples
    assert isinstance(example, ImageExample)
    assert example.open().size == (64, 64)
    change(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a.png: changed since it was looked at{more}\n"):
        example.open()


def test_pictures_are_not_decoded_while_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "words")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert len(images(tmp_path).examples) == 1


def test_small_and_long_pictures_are_counted_in_one_warning_each(tmp_path: Path) -> None:
    for name, size in {"a": (20, 20), "b": (64, 64), "c": (30, 30), "d": (2000, 100)}.items():
        picture(tmp_path / f"{name}.png", size)
        write(tmp_path / f"{name}.txt", name)
    reading = images(tmp_path)
    assert [problem.severity for problem in reading.problems] == ["warning", "warning"]
    small, long = (problem.message for problem in reading.problems)
    assert small.startswith("2 of 4 pictures (the first: ")
    assert "scaled up" in small
    assert "d.png) is too long or tall" in long


def test_several_frames_are_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    write(tmp_path / "a.txt", "words")
    message = "has several frames; the first is used"
    assert told(images(tmp_path), tmp_path) == {("a.gif", message, "warning")}


# Links and odd files


def test_links_that_leave_the_folder_are_errors_and_loops_end(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "data"
    for place in (outside, folder):
        picture(place / "a.png")
        write(place / "a.txt", "words")
    (folder / "b.png").symlink_to(outside / "a.png")
    (folder / "b.txt").symlink_to(folder / "a.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "away").symlink_to(outside)
    reading = images(folder)
    assert len(reading.examples) == 1
    leaves = "a link that leaves the data folder; copy the file into it"
    assert told(reading, folder) == {
        ("b.png", leaves, "error"),
        ("away", leaves, "error"),
        ("self.png", "a link to nothing", "error"),
        ("loop", "a link to a folder; folders are entered only where they are", "error"),
        ("b.txt", "belongs to no picture", "warning"),
    }


def test_the_data_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "a.png")
    write(tmp_path / "real" / "a.txt", "words")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert captions_of(images(tmp_path / "link")) == ["words"]


def test_nesting_is_bounded_and_pipes_do_not_hang(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "words")
    picture(tmp_path.joinpath(*["d"] * 20) / "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    write(tmp_path / "pipe.txt", "words")
    messages = [problem.message for problem in images(tmp_path).problems]
    assert messages == ["nested more than 16 folders deep", "not a regular file"]


def test_what_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "words")
    (tmp_path / "closed").mkdir()
    really_open, really_scan = os.open, os.scandir

    def open_but_texts(path: Path, *flags: int) -> int:
        if str(path).endswith(".txt"):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *flags)

    def scan_but_closed(path: Path) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return really_scan(path)

    monkeypatch.setattr(os, "open", open_but_texts)  # root may read everything, so modes do not do
    monkeypatch.setattr(os, "scandir", scan_but_closed)
    assert told(images(tmp_path), tmp_path) == {
        ("a.txt", "cannot be opened: Permission denied", "error"),
        ("closed", "cannot be listed: Permission denied", "error"),
    }


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    picture(tmp_path / "\x1b[2Ja\u202eb.png")
    (problem,) = images(tmp_path).problems
    assert problem.place == f"{tmp_path}/?[2Ja?b.png"
    assert problem.message.isprintable()


# Pictures with metadata.jsonl


def test_metadata_names_pictures_relative_to_itself(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        picture(tmp_path / name)
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "one", "id": 3})
    lines(
        tmp_path / "sub" / "metadata.jsonl",
        {"file_name": "b.png", "caption": "two"},
        "",
        {"file_name": "deep/c.png", "prompt": "three"},
    )
    reading = images(tmp_path)
    assert (reading.format, captions_of(reading)) == ("metadata", ["one", "two", "three"])
    assert reading.problems == ()
    single = images(tmp_path / "sub" / "metadata.jsonl")
    assert captions_of(single) == ["two", "three"]
    assert single.examples[0].place == str(tmp_path / "sub" / "b.png")


def test_rows_without_a_file_twice_the_same_file_and_files_without_a_row(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "gone.png", "a.png", "./a.png")]
    lines(tmp_path / "metadata.jsonl", *rows)
    reading = images(tmp_path)
    again = f"`a.png` was described before, at {tmp_path}/metadata.jsonl:1"
    assert told(reading, tmp_path) == {
        ("gone.png", "cannot be opened: No such file or directory", "error"),
        ("metadata.jsonl:3", again, "error"),
        ("metadata.jsonl:4", again, "error"),
        ("b.png", "not in metadata.jsonl", "warning"),
    }


def test_captions_and_metadata_together_need_a_decision(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "beside")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "in the table"})
    with pytest.raises(DataError, match="could be read as captions or metadata") as refused:
        images(tmp_path)
    assert "--set data.format=metadata" in str(refused.value.hint)
    assert captions_of(images(tmp_path, format="metadata")) == ["in the table"]
    assert captions_of(images(tmp_path, format="captions")) == ["beside"]


# Saved by `datasets`


@pytest.fixture(scope="module")
def table() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    rows = {
        "photo": [Image.new("RGB", (64, 48), "teal"), Image.new("L", (64, 64), 9), None],
        "words": ["one", "two", "three"],
        "count": [1, 2, 3],
    }
    return datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())


COLUMNS = {"image_column": "photo", "caption_column": "words"}


def test_a_saved_data_set_is_read_by_its_columns(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    reading = images(tmp_path / "saved", **COLUMNS)
    assert (reading.format, captions_of(reading)) == ("huggingface", ["one", "two"])
    assert next((problem.place, problem.message) for problem in reading.problems) == (
        f"{tmp_path}/saved row 2",
        "the column `data.image_column` holds no picture",
    )
    first = reading.examples[0]
    assert isinstance(first, ImageExample)
    assert first.size == (48, 64)
    assert first.open().getpixel((3, 3)) == (0, 128, 128)
    with pytest.raises(DataError, match="no column `text`; there are: photo, words, count"):
        images(tmp_path / "saved", image_column="photo")
    with pytest.raises(DataError, match="no column `image`") as refused:
        images(tmp_path / "saved")
    assert refused.value.hint == "--set data.image_column=COLUMN"


def test_of_several_splits_train_is_read(tmp_path: Path, table: Any) -> None:
    import datasets

    both = datasets.DatasetDict({"train": table.select([0]), "test": table.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert captions_of(images(tmp_path / "both", **COLUMNS)) == ["one"]
    assert captions_of(images(tmp_path / "both" / "test", **COLUMNS)) == ["two"]
    other = datasets.DatasetDict({"a": table.select([0]), "b": table.select([1])})
    other.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match="no split `train`; there are: a, b"):
        images(tmp_path / "other", **COLUMNS)


def test_columns_of_paths_stay_in_the_folder_and_bytes_are_read(tmp_path: Path) -> None:
    import datasets

    picture(tmp_path / "outside.png")
    saved = tmp_path / "saved"
    paths = ["in.png", "../outside.png", str(tmp_path / "outside.png")]
    datasets.Dataset.from_dict({"image": paths, "text": ["x"] * 3}).save_to_disk(str(saved))
    picture(saved / "in.png")
    reading = images(saved)
    assert len(reading.examples) == 1
    assert [p.message.split(":")[0] for p in reading.problems] == [
        "the picture is outside the data folder"
    ] * 2
    content = (tmp_path / "outside.png").read_bytes()
    rows = {"image": [content, b""], "text": ["x", "y"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "raw"))
    assert captions_of(images(tmp_path / "raw")) == ["x"]


def test_a_row_travels_as_its_picture_without_the_table(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    first, _ = images(tmp_path / "saved", **COLUMNS).examples
    assert isinstance(first, ImageExample)
    sent = pickle.dumps(first.open)
    assert b"datasets" not in sent
    assert pickle.loads(sent)().tobytes() == first.open().tobytes()


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DataError, match="saved: cannot be loaded"):
        images(tmp_path / "saved", **COLUMNS)
    write(tmp_path / "dict" / "dataset_dict.json", "[]")
    with pytest.raises(DataError, match=r"dataset_dict.json: no list of splits"):
        images(tmp_path / "dict")
    picture(tmp_path / "plain" / "a.png")
    with pytest.raises(DataError, match="not a saved data set"):
        images(tmp_path / "plain", format="huggingface")


def test_columns_are_refused_where_no_format_reads_them(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "words")
    with pytest.raises(ConfigError, match=r"data.caption_column is for data.format huggingface"):
        images(tmp_path, caption_column="words")


# Chats, instructions, text


def test_messages_are_read_in_both_spellings(tmp_path: Path) -> None:
    lines(
        tmp_path / "a.jsonl",
        {"messages": [{"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yo"))]},
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
                {"from": "human", "value": "r"},
                {"from": "gpt", "value": "b"},
            ],
            "system": "be brief",
        },
    )
    reading = text(tmp_path / "a.jsonl")
    assert (reading.format, reading.problems) == ("messages", ())
    assert chats_of(reading) == [
        [("user", "hi"), ("assistant", "yo")],
        [
            ("system", "be brief"),
            ("user", "q"),
            ("assistant", "a"),
            ("user", "r"),
            ("assistant", "b"),
        ],
    ]
    assert [example.place for example in reading.examples] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/a.jsonl:2",
    ]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BAD_CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"chat": []}, "no `messages`; its keys are `chat`"),
    "no list": ({"messages": "hello"}, "`messages` must be a list, not a text"),
    "no turns": ({"messages": []}, "the chat has no turns"),
    "no object": ({"messages": [USER, "yo"]}, "`messages[1]` must be an object, not a text"),
    "no content": ({"messages": [{"role": "user"}]}, "`messages[0]` needs `role` and `content`"),
    "null": ({"messages": [USER, {"role": "assistant", "content": None}]}, "not a null"),
    "parts": ({"messages": [{"role": "user", "content": [{}]}, ANSWER]}, "not a list"),
    "role": ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
    "role type": ({"messages": [{"role": [1], "content": "x"}]}, "unknown role [1]"),
    "unanswered": ({"messages": [USER, ANSWER, USER]}, "the last turn is by user"),
    "empty answer": ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty"),
    "late system": (
        {"messages": [USER, {"role": "system", "content": "x"}, ANSWER]},
        "a system turn must be the first",
    ),
    "two systems": (
        {"messages": [{"role": "system", "content": "x"}, ANSWER], "system": "y"},
        "a system turn must be the first",
    ),
    "tools": ({"messages": [USER, ANSWER], "tools": [{}]}, "`tools` is not supported"),
    "call": ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}]}, "`tool_calls` is not"),
    "weight": ({"messages": [USER, {**ANSWER, "weight": 0}]}, "`weight` is not supported"),
}


@pytest.mark.parametrize(("row", "message"), BAD_CHATS.values(), ids=BAD_CHATS)
def test_a_bad_chat_is_an_error_with_its_line(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    lines(tmp_path / "a.jsonl", {"messages": [USER, ANSWER]}, row)
    reading = text(tmp_path / "a.jsonl")
    assert len(reading.examples) == 1
    (problem,) = reading.problems
    assert (problem.place, problem.severity) == (f"{tmp_path}/a.jsonl:2", "error")
    assert message in problem.message


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "do", "input": "this", "output": "a"}, "do\n\nthis"),
        ({"instruction": "do", "input": "", "output": "a"}, "do"),
        ({"instruction": "do", "context": "this", "response": "a"}, "do\n\nthis"),
        ({"prompt": "do", "completion": "a"}, "do"),
        ({"prompt": "do", "response": "a"}, "do"),
        ({"question": "do", "answer": "a"}, "do"),
    ],
)
def test_instructions_become_a_question_and_an_answer(
    tmp_path: Path, row: dict[str, Any], question: str
) -> None:
    lines(tmp_path / "a.jsonl", row)
    reading = text(tmp_path)
    assert reading.format == "instruction"
    assert chats_of(reading) == [[("user", question), ("assistant", "a")]]


def test_bad_instructions_are_errors_with_their_lines(tmp_path: Path) -> None:
    good = {"instruction": "do", "output": "done"}
    rows = [{**good, "output": ""}, {**good, "output": 7}, {**good, "instruction": " "}, {"x": 1}]
    lines(tmp_path / "a.jsonl", good, *rows)
    assert told(text(tmp_path), tmp_path) == {
        ("a.jsonl:2", "an answer is empty", "error"),
        ("a.jsonl:3", "`output` must be a text, not a number", "error"),
        ("a.jsonl:4", "`instruction` is empty", "error"),
        ("a.jsonl:5", "no `instruction` and `output`; its keys are `x`", "error"),
    }


def test_plain_text_is_read_from_lines_and_paragraphs(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", {"text": " kept as it is\n"}, {"text": ""})
    write(tmp_path / "a.txt", "\ufeff\r\none\r\nline more\r\n \t\r\n\r\ntwo")
    write(tmp_path / "empty.txt", " \n")
    reading = text(tmp_path)
    assert reading.format == "text"
    found = [(e.place.removeprefix(f"{tmp_path}/"), e.text) for e in reading.examples]
    assert found == [
        ("b.jsonl:1", " kept as it is\n"),
        ("a.txt:2", "one\nline more"),
        ("a.txt:6", "two"),
    ]
    assert told(reading, tmp_path) == {
        ("b.jsonl:2", "`text` is empty", "error"),
        ("empty.txt", "the file is empty", "error"),
    }


def test_a_format_beside_others_is_found_and_the_rest_is_told(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"messages": [USER, ANSWER]})
    write(tmp_path / "README.txt", "about")
    reading = text(tmp_path)
    assert reading.format == "messages"
    assert [problem.message for problem in reading.problems] == ["not used: 1 .txt"]


def test_a_line_without_end_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acmsao_cli.data.records.MAX_LINE_BYTES", 2**20)
    write(tmp_path / "a.jsonl", b'{"text": "' + b"x" * 2**21)
    (problem,) = text(tmp_path, format="text").problems
    assert problem.message == "longer than 1 MiB; not read on"


# Finding a source


def test_a_missing_path_gives_near_matches(tmp_path: Path) -> None:
    for name in ("pictures", "texts.jsonl"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="does not exist") as refused:
        images(tmp_path / "picturs")
    assert refused.value.hint == f"did you mean {tmp_path}/pictures?"
    with pytest.raises(DataError, match="does not exist") as refused:
        images(tmp_path / "zzz")
    assert str(refused.value.hint).endswith("there is: pictures, texts.jsonl")
    with pytest.raises(DataError, match="nor the folder around it"):
        text(tmp_path / "no" / "such" / "folder")
    with pytest.raises(DataError, match="cannot be opened"):
        text(tmp_path / ("x" * 300))
    with pytest.raises(DataError, match="cannot be opened"):
        text(tmp_path / "nul\0")


def test_built_in_data_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "builtin")
    picture(tmp_path / "builtin" / "zoblins" / "01.png")
    write(tmp_path / "builtin" / "zoblins" / "01.txt", "a zoblin")
    lines(tmp_path / "builtin" / "pirate.jsonl", {"messages": [USER, ANSWER]})
    section = ImageData(source="builtin:zoblins", resolution=64)
    assert [example.place for example in read(section).examples] == ["builtin:zoblins/01.png"]
    chats = read(TextData(source="builtin:pirate"))
    assert [example.place for example in chats.examples] == ["builtin:pirate:1"]
    with pytest.raises(DataError, match=r"builtin:pirate: no images .* it holds 1 \.jsonl"):
        read(ImageData(source="builtin:pirate"))


def test_unknown_built_in_data_lists_what_there_is() -> None:
    with pytest.raises(DataError, match="no data set `builtin:nothing`") as refused:
        read(TextData(source="builtin:nothing"))
    assert refused.value.hint == "there are: builtin:zoblins, builtin:pirate"


def test_where_nothing_fits_what_is_there_and_what_would_do_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "data.json", "[]")
    write(tmp_path / "more.csv", "a,b")
    with pytest.raises(DataError, match=r"no text .*; it holds 1 \.json, 1 \.csv") as refused:
        text(tmp_path)
    hint = str(refused.value.hint)
    assert all(f"\n  {name}: " in hint for name in ("messages", "instruction", "text"))
    assert "jq -c" in hint
    with pytest.raises(DataError, match="no images to train on; it holds") as refused:
        images(tmp_path)
    assert "captions: a folder of pictures" in str(refused.value.hint)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="it holds no files"):
        text(tmp_path / "void")
    with pytest.raises(DataError, match="no text to train on"):
        text(tmp_path, format="messages")
    with pytest.raises(DataError, match="no images to train on"):
        images(tmp_path, format="metadata")


def test_the_order_is_that_of_names_however_the_folder_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", "d/x", "c"):
        lines(tmp_path / f"{name}.jsonl", {"text": name})
    there = [example.place for example in text(tmp_path).examples]
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(scan(path))))
    assert [example.place for example in text(tmp_path).examples] == there
    assert there == [f"{tmp_path}/{name}.jsonl:1" for name in ("a", "b", "c", "d/x")]


# What becomes of problems


GOOD = TextExample("g:1", messages=(Message("user", "q"), Message("assistant", "a")))
BAD = tuple(Problem(f"f:{number}", "wrong") for number in range(23))


def test_require_lists_twenty_errors_and_the_number_of_the_rest() -> None:
    section = TextData(source="x")
    with pytest.raises(DataError) as refused:
        require(Reading("messages", (GOOD,), BAD), section)
    assert refused.value.message.startswith(
        "23 errors in the data (read as messages):\n  f:0: wrong"
    )
    assert refused.value.message.endswith("\n  f:19: wrong\n  and 3 more")
    assert "acmsao data check" in str(refused.value.hint)
    warning = Problem("f", "odd", severity="warning")
    assert require(Reading("messages", (GOOD,), (warning,)), section) == (GOOD,)
    with pytest.raises(DataError, match="no examples"):
        require(Reading("messages", (), (warning,)), section)


def test_bad_items_are_skipped_where_that_is_asked_for_and_are_few() -> None:
    few = TextData(source="x", on_bad="skip", max_bad=0.5)
    assert require(Reading("messages", (GOOD,), BAD[:1]), few) == (GOOD,)
    with pytest.raises(DataError, match="2 of 3 items are bad") as refused:
        require(Reading("messages", (GOOD,), BAD[:2]), few)
    assert "data.max_bad=0.67" in str(refused.value.hint)
    with pytest.raises(DataError, match="no examples"):
        require(Reading("messages", (), BAD[:2]), few)


def test_what_turns_bad_is_counted_with_what_was_bad_before() -> None:
    reading = Reading("messages", (GOOD, replace(GOOD, place="g:2")), BAD[:1])
    error = DataError("g:2: worse")
    with pytest.raises(DataError, match="g:2: worse"):
        Remaining(reading, TextData(source="x")).leave_out(reading.examples[1], error)
    for share, allowed in ((0.5, False), (0.7, True)):
        left = Remaining(reading, TextData(source="x", on_bad="skip", max_bad=share))
        if not allowed:
            with pytest.raises(DataError, match=r"2 of 3 items are bad(.|\n)*g:2: worse"):
                left.leave_out(reading.examples[1], error)
            continue
        left.leave_out(reading.examples[1], error)
        assert left.reading.examples == (GOOD,)
        assert bad(left.reading) == [*BAD[:1], Problem("g:2", "worse", name="g:2")]


def test_the_summary_tells_sizes_captions_and_turns(tmp_path: Path) -> None:
    for name, size in {"a": (64, 64), "b": (128, 128), "c": (200, 100)}.items():
        picture(tmp_path / "p" / f"{name}.png", size)
        write(tmp_path / "p" / f"{name}.txt", "two words")
    section = ImageData(source=str(tmp_path / "p"), resolution=64, bucket_step=8)
    facts = dict(summarise(read(section), section))
    assert facts["format"] == "captions (found by looking)"
    assert facts["picture sizes"] == "from 64 x 64 to 200 x 100 (width x height)"
    assert facts["training sizes"] == "64 x 64: 2, 88 x 40: 1"
    assert facts["caption length"] == "2 to 2 words, median 2"
    assert facts["distinct captions"] == "1 of 3"

    lines(tmp_path / "a.jsonl", *[{"messages": [USER, ANSWER]}] * 2)
    chats = TextData(source=str(tmp_path / "a.jsonl"), format="messages")
    facts = dict(summarise(read(chats), chats))
    assert facts["format"] == "messages (as the recipe says)"
    assert facts["turns by role"] == "assistant 2, user 2"
    assert facts["repeated examples"] == "1"
    assert facts["example length"] == "2 to 2 characters, median 2"


def spoilt_pictures(folder: Path) -> None:
    for name in "abcdefg":
        picture(folder / f"{name}.png")
        write(folder / f"{name}.txt", name)
    write(folder / "b.png", "no picture")
    write(folder / "c.txt", "")
    (folder / "d.txt").unlink()
    picture(folder / "e.jpg")
    (folder / "f.png").unlink()
    (folder / "f.png").symlink_to("nowhere")


def spoilt_table(folder: Path) -> None:
    for name in "ac":
        picture(folder / f"{name}.png")
    write(folder / "b.png", "no picture")
    rows = [{"file_name": f"{name}.png", "text": name} for name in "ab"]
    lines(folder / "metadata.jsonl", *rows, {"file_name": "c.png", "text": ""}, "{", rows[0])


def spoilt_chats(folder: Path) -> None:
    good = {"prompt": "a", "completion": "b"}
    lines(folder / "a.jsonl", good, "{", good | {"completion": ""}, {"prompt": "a"})


def spoilt_rows(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    picture(folder / "a.png")
    image = (folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    rows = {"image": [image, b"none", image], "text": ["a", "b", ""]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder))


SPOILT: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "captions": (spoilt_pictures, ["b.png", "c.png", "d.png", "e.png", "f.png"]),
    "metadata": (spoilt_table, ["b.png", "c.png", "metadata.jsonl:4", "metadata.jsonl:5"]),
    "instruction": (spoilt_chats, ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]),
    "huggingface": (spoilt_rows, ["row 1", "row 2"]),
}


@pytest.mark.parametrize("form", SPOILT)
def test_what_is_wrong_with_an_item_has_the_name_that_the_item_has_when_it_is_put_right(
    tmp_path: Path, form: str
) -> None:
    spoil, names = SPOILT[form]
    spoil(tmp_path)
    reading = text(tmp_path) if form == "instruction" else images(tmp_path)
    assert reading.format == form
    assert sorted(problem.name for problem in bad(reading)) == names
