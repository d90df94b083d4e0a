"""Each way to fail has its exit code, one clear line, and leaves nothing half-done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import refused

from acmsao_cli.data import pictures
from acmsao_cli.engine.folder import RunFolder


def test_a_recipe_that_does_not_exist(acmsao: Any) -> None:
    refused(acmsao("train", "quikstart"), 2, "did you mean `quickstart`")
    refused(acmsao("train", "missing.yaml"), 2, "missing.yaml")


def test_a_folder_in_use(acmsao: Any, lm: Path) -> None:
    with RunFolder(Path("out")).locked():
        refused(acmsao("train", str(lm), "-o", "out"), 4, f"process {os.getpid()}")


def test_a_damaged_checkpoint_and_a_changed_recipe(acmsao: Any, lm: Path) -> None:
    assert acmsao("train", str(lm), "-o", "out").code == 0
    Path("out/summary.json").unlink()
    refused(acmsao("train", str(lm), "-o", "out", "-s", "optimizer.lr=0.1"), 5, "optimizer.lr")
    refused(acmsao("train", str(lm), "-o", "out", "-s", "training.steps=3"), 5, "past the 3")
    weights = Path("out/checkpoints/step-00000006/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4])
    named = ("train", str(lm), "--resume", "out/checkpoints/step-00000006")
    refused(acmsao(*named), 5, "bytes, not")
    older = acmsao("train", str(lm), "-o", "out")
    assert older.code == 0, older.err
    assert "bytes, not" in " ".join(older.out.split())
    assert "continuing at step 4" in older.out


def test_no_checkpoint_that_is_whole(acmsao: Any, lm: Path) -> None:
    assert acmsao("train", str(lm), "-o", "out").code == 0
    Path("out/summary.json").unlink()
    for manifest in Path("out/checkpoints").glob("*/manifest.json"):
        manifest.write_text("{}")
    refused(acmsao("train", str(lm), "-o", "out"), 5, "no checkpoint in", "--resume never")


def test_a_checkpoint_that_was_about_to_be_replaced_is_gone_on_from(acmsao: Any, lm: Path) -> None:
    """As a crash between the two renames leaves it, with no other checkpoint beside it."""
    options = ("train", str(lm), "-o", "out", "-s", "checkpoint.keep=1")
    assert acmsao(*options).code == 0
    Path("out/summary.json").unlink()
    newest = Path("out/checkpoints/step-00000006")
    newest.rename(newest.with_name(".step-00000006.former.tmp"))
    again = acmsao(*options)
    assert again.code == 0, again.err
    assert "continuing at step 6" in again.out


def test_a_disk_that_will_not_hold_the_run(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    refused(acmsao("train", str(lm), "-o", "out"), 6, "this run needs", "checkpoint.keep")
    assert not Path("out").exists()


def test_a_place_that_cannot_be_written(acmsao: Any, lm: Path) -> None:
    Path("file").write_text("in the way")
    refused(acmsao("train", str(lm), "-o", "file/run"), 6, "cannot write")


def test_a_run_that_does_not_fit_says_what_would_help(acmsao: Any, lm: Path) -> None:
    outcome = acmsao("train", str(lm), "-s", "memory.budget_gib=0.0001")
    refused(outcome, 8, "weights", "--set optimizer.storage=factored")
    assert not list(Path("runs").glob("*"))


@pytest.fixture
def spoilt(sdxl: Path, shelf: Path, tmp_path: Path) -> Path:
    """A recipe whose data has a picture with a good header and half of its pixels."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for file in (shelf / "pictures").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / "0.png").read_bytes()
    (folder / "zz.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zz.txt").write_text("cut short")
    recipe = json.loads(sdxl.read_text())
    recipe["data"]["source"] = str(folder)
    sdxl.write_text(json.dumps(recipe))
    return sdxl


def test_the_check_decodes_every_picture_as_a_training_will(acmsao: Any, spoilt: Path) -> None:
    checked = acmsao("data", "check", str(spoilt))
    assert checked.code == 3
    assert "zz.png" in checked.out


def test_a_bad_picture_is_found_before_the_model_is_looked_for(acmsao: Any, spoilt: Path) -> None:
    gone = ("-s", "model.source=./nowhere")
    refused(acmsao("train", str(spoilt), *gone), 3, "1 error", "zz.png", "data.on_bad=skip")
    assert not Path("runs").exists()


def test_bad_items_are_left_out_counted_and_told(acmsao: Any, spoilt: Path) -> None:
    skip = ("-s", "data.on_bad=skip")
    refused(acmsao("train", str(spoilt), *skip), 3, "1 of 7 items are bad", "data.max_bad=0.15")
    options = ("train", str(spoilt), *skip, "-s", "data.max_bad=0.15", "-o", "out")
    done = acmsao(*options)
    assert done.code == 0, done.err
    assert "1 bad item is left out:" in done.out
    assert "zz.png: cannot be decoded" in " ".join(done.out.split())
    assert json.loads(Path("out/summary.json").read_text())["items_left_out"] == 1
    kept = json.loads(Path("out/data.json").read_text())
    assert kept["left_out"][0].startswith("zz.png: ")
    assert len(kept["items"]) == 6


def test_what_was_left_out_at_first_stays_out_though_it_is_put_right_or_gone_for_a_while(
    acmsao: Any, spoilt: Path
) -> None:
    folder = spoilt.parent / "spoilt"
    whole = (folder / "0.png").read_bytes()
    (folder / "zz.png").write_text("no picture")
    recipe = json.loads(spoilt.read_text())
    del recipe["samples"]
    spoilt.write_text(json.dumps(recipe))
    skip = ("-s", "data.on_bad=skip", "-s", "data.max_bad=0.15")
    options = ("train", str(spoilt), *skip, "-o", "out", "-s")
    assert acmsao(*options, "training.steps=1").code == 0
    (folder / "zz.png").unlink()
    done = acmsao(*options, "training.steps=2")
    assert done.code == 0, done.err
    kept = json.loads(Path("out/data.json").read_text())
    assert (len(kept["items"]), len(kept["left_out"])) == (6, 1)
    (folder / "zz.png").write_bytes(whole)
    rehearsed = acmsao(*options, "training.steps=3", "--dry-run")
    assert rehearsed.code == 0, rehearsed.err
    assert "1 bad item is left out:" in rehearsed.out
    assert "6 examples from" in rehearsed.out


def test_pictures_that_were_seen_whole_are_decoded_once_for_a_run(
    acmsao: Any, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_picture = pictures.open_picture

    def counted(path: Path, place: str) -> Any:
        opened.append(place)
        return open_picture(path, place)

    monkeypatch.setattr(pictures, "open_picture", counted)
    assert acmsao("train", str(sdxl), "-o", "out").code == 0
    first = len(opened)
    assert first == 12, "once to look, once to encode"
    done = acmsao("train", str(sdxl), "-o", "out")
    assert "already done" in done.out
    assert len(opened) == first
