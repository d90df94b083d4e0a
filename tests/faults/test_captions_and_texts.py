"""Captions, tables of captions, texts and chats that are not what they should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import UNSEEN, Acmsao, Outcome, refused
from PIL import Image

pytestmark = pytest.mark.usefixtures("ends")

Check = Callable[..., Outcome]
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202eevil\u2066"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`data`, with one picture: a.png."""
    place = tmp_path / "data"
    place.mkdir()
    picture(place / "a.png")
    return place


def picture(file: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(file)


@pytest.fixture
def pictures(acmsao: Acmsao, sdxl: Path) -> Check:
    """What a training on ./data ends with before anything is loaded."""

    def run(*options: str) -> Outcome:
        ours = ("-s", "data.source=./data", "-s", "training.batch_size=1")
        return acmsao("train", str(sdxl), "--dry-run", *ours, *options)

    return run


@pytest.fixture
def texts(acmsao: Acmsao, lm: Path) -> Check:
    """The same of ./data.jsonl."""

    def run(content: bytes | str, *options: str) -> Outcome:
        Path("data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
        ours = ("-s", "data.source=./data.jsonl", "-s", "training.batch_size=1")
        return acmsao("train", str(lm), "--dry-run", *ours, *options)

    return run


# Captions beside pictures

CAPTIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a.txt: the caption is empty"),
    "blank": (b"\xef\xbb\xbf \n\t", "a.txt: the caption is empty"),
    "not UTF-8": (b"caf\xe9 noir", "a.txt: not UTF-8: byte 0xe9 at offset 3"),
    "UTF-16": ("a caption".encode("utf-16"), "a.txt: not UTF-8: byte 0xff at offset 0"),
    "UTF-32": ("a caption".encode("utf-32"), "a.txt: not UTF-8: byte 0xff at offset 0"),
    "1 MB": (b"word " * 200_000, "a.txt: longer than 64 KiB"),
    "NUL": (b"a\0b", "a.txt: the caption holds a NUL character"),
}


@pytest.mark.parametrize(("content", "says"), CAPTIONS.values(), ids=CAPTIONS)
def test_a_bad_caption_is_refused_at_its_file(
    pictures: Check, folder: Path, content: bytes, says: str
) -> None:
    (folder / "a.txt").write_bytes(content)
    refused(pictures(), 3, says)


def caption_is_missing(folder: Path) -> None:
    """As `folder` is."""


def caption_is_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.txt")


def caption_is_a_device(folder: Path) -> None:
    (folder / "a.txt").symlink_to("/dev/zero")


def caption_is_elsewhere(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "a.txt").symlink_to("../secret.txt")


def picture_is_elsewhere(folder: Path) -> None:
    (folder / "a.txt").write_text("a caption")
    (folder / "a.png").rename(folder.parent / "secret.png")
    (folder / "a.png").symlink_to("../secret.png")


def folder_is_elsewhere(folder: Path) -> None:
    (folder / "a.txt").write_text("a caption")
    (folder / "more").symlink_to("/etc")


def two_pictures_of_one_caption(folder: Path) -> None:
    (folder / "a.txt").write_text("a caption")
    picture(folder / "a.jpg")


def names_that_differ_in_case(folder: Path) -> None:
    for name in ("a.txt", "A.txt"):
        (folder / name).write_text("a caption")
    picture(folder / "A.png")


def names_that_look_alike(folder: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        picture(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a caption")


def names_with_escapes(folder: Path) -> None:
    picture(folder / f"{ESCAPES}.png")


def names_with_line_ends(folder: Path) -> None:
    picture(folder / "b\nerror: all is well\r.png")


def names_that_are_not_utf8(folder: Path) -> None:
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb"):
        pass


def nothing_in_it(folder: Path) -> None:
    (folder / "a.png").unlink()


FOLDERS: dict[Callable[[Path], None], str] = {
    caption_is_missing: "a.png: there is no caption a.txt beside it",
    caption_is_a_pipe: "a.txt: not a regular file",
    caption_is_a_device: "a.txt: a link that leaves the data folder",
    caption_is_elsewhere: "a.txt: a link that leaves the data folder",
    picture_is_elsewhere: "a.png: a link that leaves the data folder",
    folder_is_elsewhere: "more: a link that leaves the data folder",
    two_pictures_of_one_caption: "has the same caption file as a.jpg",
    names_that_differ_in_case: "a.png: differs from A.png in case alone",
    names_that_look_alike: "has several captions",
    names_with_escapes: "?[2J?]0;owned??evil?.png: there is no caption",
    names_with_line_ends: "b?error: all is well?.png",
    names_that_are_not_utf8: "??.png",
    nothing_in_it: "no images to train on; it holds no files",
}


@pytest.mark.parametrize("spoil", FOLDERS, ids=lambda spoil: spoil.__name__)
def test_a_folder_of_which_the_meaning_is_not_clear_is_refused(
    pictures: Check, folder: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    refused(pictures(), 3, FOLDERS[spoil])


def test_what_a_caption_says_does_not_drive_the_terminal(
    acmsao: Acmsao, sdxl: Path, folder: Path
) -> None:
    (folder / "a.txt").write_text(f"red {ESCAPES} square")
    shown = acmsao("data", "check", str(sdxl), "-s", "data.source=./data")
    assert shown.code == 0, shown.err
    assert "owned" in shown.out
    assert not UNSEEN.search(shown.out), ascii(shown.out)


def test_names_in_warnings_do_not_drive_the_terminal(
    acmsao: Acmsao, sdxl: Path, folder: Path
) -> None:
    (folder / "a.txt").write_text("a caption")
    for suffix in ("txt", "npz", "heic", "\x1b[2J"):
        (folder / f"{ESCAPES}.{suffix}").write_text("words")
    done = acmsao("data", "check", str(sdxl), "-s", "data.source=./data")
    assert done.code == 0, done.err
    assert "belongs to no picture" in done.out
    assert not UNSEEN.search(done.out + done.err), ascii(done.out)


# Tables of captions

GOOD = {"file_name": "a.png", "text": "fine"}
ROWS: dict[str, tuple[bytes, str]] = {
    "parent": (b'{"file_name": "../secret.png", "text": "x"}', "leaves the data folder"),
    "parent inside": (b'{"file_name": "d/../../a.png", "text": "x"}', "leaves the data folder"),
    "link": (b'{"file_name": "away/secret.png", "text": "x"}', "leaves the data folder"),
    "no name": (b'{"text": "x"}', "no `file_name`; its keys are `text`"),
    "empty name": (b'{"file_name": "", "text": "x"}', "must be a path relative"),
    "absolute": (b'{"file_name": "/etc/passwd", "text": "x"}', "must be a path relative"),
    "windows": (b'{"file_name": "C:\\\\x.png", "text": "x"}', "must be a path relative"),
    "NUL in a name": (b'{"file_name": "a\\u0000.png", "text": "x"}', "must be a path relative"),
    "cut off": (b'{"file_name": "a.png", "te', "not JSON: Unterminated string"),
    "no quotes": (b"{file_name: a.png}", "not JSON: Expecting property name"),
    "deep": (b"[" * 100_000, "not JSON that can be read"),
    "long number": (b'{"n": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    "a list": (b"[1, 2]", "a list; each line must be one JSON object"),
    "not UTF-8": (b'{"file_name": "\xff"}', "not UTF-8: byte 0xff at offset 15"),
    "UTF-16": ('{"file_name": "a.png"}'.encode("utf-16"), "not UTF-8"),
    "twice": (json.dumps(GOOD).encode(), "`a.png` was described before, at"),
    "twice, spelt otherwise": (b'{"file_name": "./a.png", "text": "x"}', "was described before"),
    "no caption": (b'{"file_name": "a.png"}', "no caption: `text`, `caption` or `prompt`"),
    "NaN": (b'{"file_name": "a.png", "text": NaN}', "`text` must be a text, not a number"),
    "number": (b'{"file_name": "a.png", "text": 3}', "`text` must be a text, not a number"),
    "null": (b'{"file_name": "a.png", "text": null}', "`text` must be a text, not a null"),
    "list": (b'{"file_name": "a.png", "text": ["x"]}', "`text` must be a text, not a list"),
    "number for a name": (b'{"file_name": 3, "text": "x"}', "`file_name` must be a text"),
    "empty caption": (b'{"file_name": "a.png", "text": " "}', "the caption is empty"),
    "1 MB": (b'{"file_name": "a.png", "text": "' + b"w" * 2**20 + b'"}', "longer than 64 KiB"),
    "surrogate": (b'{"file_name": "a.png", "text": "\\ud800"}', "half a character"),
    "key with escapes": (b'{"\\u001b[2J\\u202e": 1}', "its keys are `?[2J?`"),
    "key twice": (b'{"file_name": "b.png", "text": "x", "text": "y"}', "`text` stands twice"),
    "huge line": (b'{"x": "' + b"w" * (17 * 2**20) + b'"}', "longer than 16 MiB; not read on"),
}


@pytest.mark.parametrize(("row", "says"), ROWS.values(), ids=ROWS)
def test_a_bad_row_of_a_table_is_refused_by_its_line(
    pictures: Check, folder: Path, row: bytes, says: str
) -> None:
    picture(folder.parent / "secret.png")
    picture(folder / "b.png")
    (folder / "away").symlink_to("..")
    (folder / "metadata.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\n" + row + b"\n")
    refused(pictures(), 3, "data/metadata.jsonl:3: ", says)


def test_a_row_without_its_picture_and_a_link_out_are_refused(
    pictures: Check, folder: Path
) -> None:
    picture(folder.parent / "secret.png")
    (folder / "b.png").symlink_to("../secret.png")
    names = ("a.png", "gone.png", "b.png")
    rows = [json.dumps({"file_name": name, "text": "x"}) + "\n" for name in names]
    (folder / "metadata.jsonl").write_text("".join(rows))
    refused(pictures(), 3, "gone.png: cannot be opened: No such file", "3: `file_name` leaves")


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir])
def test_a_table_that_is_no_file_is_refused(
    pictures: Check, folder: Path, make: Callable[[Path], None]
) -> None:
    make(folder / "metadata.jsonl")
    refused(pictures(), 3, "data")


def test_an_empty_table_is_refused(pictures: Check, folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(b"\n")
    refused(pictures(), 3, "data")


# Texts and chats


def chat(*turns: tuple[Any, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], **more})


TEXTS: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "data.jsonl: no text to train on"),
    "blank lines": ("\n\n\n", "data.jsonl: no text to train on"),
    "not JSON": ("hello\n", "data.jsonl: no text to train on"),
    "UTF-16": (chat(("user", "a"), ("assistant", "b")).encode("utf-16"), "no text to train on"),
    "no answer": (chat(("user", "a")), ":1: the last turn is by user"),
    "empty answer": (chat(("user", "a"), ("assistant", " ")), ":1: an answer is empty"),
    "no turns": ('{"messages": []}', ":1: the chat has no turns"),
    "turns of text": ('{"messages": "hello"}', ":1: `messages` must be a list, not a text"),
    "turn of text": ('{"messages": ["hello"]}', "`messages[0]` must be an object, not a text"),
    "unknown role": (chat(("\x1b[2Jevil", "a")), "has unknown role"),
    "number": (chat(("user", 3), ("assistant", "b")), "must be a text, not a number"),
    "NaN": ('{"text": NaN}', ":1: `text` must be a text, not a number"),
    "null": ('{"text": null}', ":1: `text` must be a text, not a null"),
    "surrogate": ('{"text": "\\ud800"}', ":1: `text` holds half a character"),
    "second line broken": ('{"text": "a"}\n{"text', ":2: not JSON"),
    "second line not UTF-8": (b'{"text": "a"}\n{"text": "\xff"}', ":2: not UTF-8: byte 0xff"),
    "tools": (chat(("user", "a"), ("assistant", "b"), tools=[1]), "`tools` is not supported"),
}


@pytest.mark.parametrize(("content", "says"), TEXTS.values(), ids=TEXTS)
def test_a_bad_text_is_refused_by_its_line(texts: Check, content: bytes | str, says: str) -> None:
    refused(texts(content), 3, says)


def test_a_text_of_a_megabyte_is_cut_to_what_the_model_reads(acmsao: Acmsao, lm: Path) -> None:
    Path("data.jsonl").write_text(json.dumps({"text": "what is it? " * 90_000}) + "\n")
    shown = acmsao("data", "check", str(lm), "-s", "data.source=./data.jsonl")
    assert shown.code == 0, shown.err
    assert "trained 63 of 64 tokens (cut from " in shown.out


def test_what_a_text_says_does_not_drive_the_terminal(acmsao: Acmsao, lm: Path) -> None:
    Path("data.jsonl").write_text(chat(("user", f"a {ESCAPES}"), ("assistant", f"b {ESCAPES}")))
    shown = acmsao("data", "check", str(lm), "-s", "data.source=./data.jsonl")
    assert shown.code == 0, shown.err
    assert "owned" in shown.out
    assert not UNSEEN.search(shown.out), ascii(shown.out)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("name", ["data.jsonl", "data.txt"])
def test_a_source_that_is_no_file_is_refused(
    acmsao: Acmsao, lm: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(Path(name))
    refused(acmsao("train", str(lm), "-s", f"data.source=./{name}"), 3, name)


@pytest.mark.parametrize("source", ["./nowhere", "builtin:nothing", "./nul\\0", "~nobody/x"])
def test_a_source_that_is_not_there_is_refused(acmsao: Acmsao, lm: Path, source: str) -> None:
    refused(acmsao("train", str(lm), "-s", f"data.source={source}"), 3, "data")


# Too little


@pytest.mark.parametrize("command", ["train", "dry"])
def test_a_batch_larger_than_the_data_is_refused(acmsao: Acmsao, lm: Path, command: str) -> None:
    options = ("--dry-run",) if command == "dry" else ()
    outcome = acmsao("train", str(lm), "-s", "training.batch_size=64", *options)
    refused(outcome, 3, "the data has only 10 examples", "training.batch_size=10")


def test_one_picture_is_enough(acmsao: Acmsao, sdxl: Path, folder: Path) -> None:
    (folder / "a.txt").write_text("a caption")
    options = ("-s", "data.source=./data", "-s", "training.batch_size=1")
    few = ("-s", "training.steps=2", "-s", "samples.steps=1", "-s", "output.formats=[peft]")
    done = acmsao("train", str(sdxl), *options, *few, "-o", "out")
    assert done.code == 0, done.err
    assert json.loads(Path("out/summary.json").read_text())["steps"] == 2


# Saved data sets


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two pictures that the `datasets` library saved."""
    import datasets

    place = tmp_path_factory.mktemp("saved") / "set"
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    table = datasets.Dataset.from_dict({"image": images, "text": ["red", "blue"]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(place))
    return place


def piped(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def elsewhere(file: Path) -> None:
    """The table lies outside of the folder, and the list of tables says so."""
    table = file.parent / "data-00000-of-00001.arrow"
    table.rename(file.parent.parent / "secret.arrow")
    state = file.parent / "state.json"
    state.write_text(state.read_text().replace(table.name, "../secret.arrow"))


@pytest.mark.parametrize("spoil", [piped, endless, cut, elsewhere, Path.unlink])
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
def test_a_saved_data_set_that_is_spoilt_is_refused(
    pictures: Check, folder: Path, saved: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    spoil(folder / name)
    refused(pictures(), 3, "data")
