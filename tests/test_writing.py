"""What is written appears whole, in its place, as files of this user usually are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from acmsao_cli.errors import OutputError
from acmsao_cli.writing import staged, write_whole, writing


def test_a_staged_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with staged(target) as stage:
        stage.mkdir()
        (stage / "new").write_text("new")
        assert (target / "old").exists()
    assert [file.name for file in target.iterdir()] == ["new"]


def test_what_fails_midway_leaves_the_old_one_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")

    def write() -> None:
        with staged(target) as stage:
            stage.mkdir()
            (stage / "half").write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "old"]


def test_what_a_library_hid_is_readable_once_it_is_in_place(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with staged(tmp_path / "out") as stage:
            (stage / "inner").mkdir(parents=True)
            (stage / "inner" / "secret").write_text("x")
            (stage / "inner" / "secret").chmod(0o600)
    finally:
        os.umask(mask)
    assert (tmp_path / "out" / "inner" / "secret").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_every_refusal_is_an_output_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutputError) as caught, writing(tmp_path):
        raise error
    assert caught.value.message.endswith(": No space left on device")


def test_a_file_in_the_way_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / "file" / "x.txt", "text")


def stage_a_file(place: Path) -> None:
    with staged(place) as stage:
        stage.write_text("new")


@pytest.mark.parametrize("write", [lambda place: write_whole(place, "new"), stage_a_file])
def test_a_file_never_takes_the_place_of_a_folder(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    """What a user keeps in a folder must outlive a path that names the folder by mistake."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    with pytest.raises(OutputError, match="it is a folder"):
        write(folder)
    assert (folder / "precious").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_folder_one_stands_in_is_none_to_write_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="it is a folder"):
        write_whole(Path(), "new")
