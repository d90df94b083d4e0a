"""A data set is known by what its examples say and show, wherever it lies."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from acmsao_cli import identity
from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data.manifest import left_out, manifest
from acmsao_cli.data.reading import read
from acmsao_cli.errors import DataError
from acmsao_cli.identity import Item, difference, digest


def paint(file: Path, colour: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(file)


def of_pictures(folder: Path, known: dict[str, Item] | None = None, **more: Any) -> dict[str, Item]:
    section = ImageData.model_validate({"source": str(folder), "resolution": 64, **more})
    return manifest(read(section).examples, known)


def of_texts(source: Path) -> dict[str, Item]:
    return manifest(read(TextData.model_validate({"source": str(source)})).examples)


def test_pictures_are_read_once_and_again_when_they_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        paint(tmp_path / f"sub/{number}.png", "red")
        (tmp_path / f"sub/{number}.txt").write_text(f"number {number}")
    found = of_pictures(tmp_path)
    assert list(found) == ["sub/0.png", "sub/1.png", "sub/2.png"]
    read: list[str] = []
    hashing = identity.sha256_of

    def counted(stream: Any, *rest: Any) -> str:
        read.append(hashing(stream, *rest))
        return read[-1]

    monkeypatch.setattr(identity, "sha256_of", counted)
    (tmp_path / "sub/0.png").touch()
    paint(tmp_path / "sub/1.png", "blue")
    (tmp_path / "sub/2.txt").write_text("two")
    again = of_pictures(tmp_path, found)
    assert sorted(read) == sorted(again[f"sub/{number}.png"].sha256 for number in range(2))
    assert difference(found, again).changed == ("sub/1.png", "sub/2.png")
    assert again["sub/2.png"].sha256 == found["sub/2.png"].sha256


def test_a_table_of_pictures_is_known_by_its_rows_in_their_order(tmp_path: Path) -> None:
    rows = [json.dumps({"file_name": f"{n}.png", "text": f"number {n}"}) for n in range(2)]
    for number in range(2):
        paint(tmp_path / f"{number}.png", "red")
    table = tmp_path / "metadata.jsonl"
    table.write_text("\n".join(rows))
    found = of_pictures(tmp_path)
    table.write_text("\n".join(reversed(rows)))
    again = of_pictures(tmp_path)
    assert again == found
    assert digest(again) != digest(found)


def test_pictures_in_a_saved_table_are_known_by_their_bytes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
    paint(tmp_path / "a.png", "red")
    paint(tmp_path / "b.png", "blue")
    one, two = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    for name, content in (("same", one), ("moved", one), ("other", two)):
        rows = {"image": [one, content], "text": ["x", "y"]}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / name))
    same, moved, other = (of_pictures(tmp_path / name) for name in ("same", "moved", "other"))
    assert list(same) == ["row 0", "row 1"]
    assert same["row 0"].sha256 == identity.sha256(tmp_path / "a.png")
    assert digest(same) == digest(moved)
    assert difference(same, other).changed == ("row 1",)


@pytest.mark.parametrize(
    "lines",
    [
        ['{"text": "one"}', '{"text": "two"}'],
        ['{"prompt": "one", "completion": "two"}'] * 2,
        [json.dumps({"messages": [{"role": "assistant", "content": "one"}]})] * 2,
    ],
)
def test_lines_of_text_are_known_by_what_they_say(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    found = of_texts(file)
    assert list(found) == ["a.jsonl:1", "a.jsonl:2"]
    assert found == of_texts(tmp_path), "alone, or in its folder"
    file.write_text("\n".join([lines[0], lines[1].replace("one", "ONE").replace("two", "TWO")]))
    assert difference(found, of_texts(file)).changed == ("a.jsonl:2",)


def test_paragraphs_are_known_by_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\ntwo\n")
    assert list(of_texts(tmp_path)) == ["a.txt:1", "a.txt:3"]


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red")
    (tmp_path / "a.txt").write_text("a")
    examples = read(ImageData(source=str(tmp_path))).examples
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be opened"):
        manifest(examples)


def test_what_is_left_out_does_not_say_where_the_data_lies(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": 2}')
    for source in (tmp_path, tmp_path / "a.jsonl"):
        (item,) = left_out(read(TextData(source=str(source))), str(source))
        assert item.startswith("a.jsonl:2: ")
