"""Every checkpoint on disk is whole, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acmsao_cli.checkpoint import store as module
from acmsao_cli.checkpoint.store import (
    MANIFEST,
    CheckpointStore,
    newest_checkpoint,
    open_checkpoint,
    open_newest,
)
from acmsao_cli.errors import CheckpointError, OutputError

FILES = {"weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}}


def test_what_is_saved_comes_back_with_exact_dtypes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    path = store.save(7, FILES, {"seed": 3})
    found = open_checkpoint(path)
    assert (found.step, found.header) == (7, {"seed": 3})
    for name, tensor in found.tensors("weights").items():
        assert tensor.dtype == FILES["weights"][name].dtype
        assert torch.equal(tensor, FILES["weights"][name])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    for step in (1, 2, 10):
        store.save(step, FILES, {})
    assert store.steps() == [2, 10]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000010"


def test_what_a_crash_left_is_removed_and_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    store.save(1, FILES, {})
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000002.tmp" / "weights.safetensors").write_bytes(b"half")
    assert store.steps() == [1]
    store.remove_leftovers()
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_what_was_about_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    """A crash between the two renames must not leave a run without a checkpoint."""
    store = CheckpointStore(tmp_path, 1)
    store.save(1, FILES, {"first": True})
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.former.tmp")
    (tmp_path / ".step-00000001.tmp").mkdir()
    store.remove_leftovers()
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert open_checkpoint(tmp_path / "step-00000001").header == {"first": True}


def test_the_newest_that_is_whole_is_found_and_the_damaged_are_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    for step in (1, 2, 3):
        store.save(step, FILES, {})
    (tmp_path / "step-00000003" / MANIFEST).unlink()
    (tmp_path / "step-00000002" / "weights.safetensors").write_bytes(b"")
    found, wrong = open_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert ["00000003" in wrong[0], "00000002" in wrong[1], len(wrong)] == [True, True, 2]
    (tmp_path / "step-00000001" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        open_newest(tmp_path)
    assert open_newest(tmp_path / "none") == (None, [])
    assert store.steps() == [1, 2, 3], "what is damaged is left to look at"


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, 1)
    store.save(1, FILES, {})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(OutputError, match=r"the checkpoint needs .* MiB .* are free"):
        store.save(2, FILES, {})
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_save_that_fails_midway_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, 1)
    store.save(1, FILES, {})

    def full(file: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "flushed", full)
    with pytest.raises(OutputError, match="No space left"):
        store.save(2, FILES, {})
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert open_checkpoint(tmp_path / "step-00000001").step == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x55"), "changed or damaged"),
        (lambda file: file.unlink(), "is missing"),
        (lambda file: (file.parent / MANIFEST).unlink(), "not a checkpoint"),
        (lambda file: (file.parent / MANIFEST).write_text("{"), "cannot be read"),
        (lambda file: (file.parent / MANIFEST).write_text("[]"), "cannot be read"),
        (
            lambda file: (file.parent / MANIFEST).write_text(
                json.dumps({"format": 99, "step": 1, "files": {}, "header": {}})
            ),
            "format 99",
        ),
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage: object, words: str) -> None:
    store = CheckpointStore(tmp_path, 2)
    path = store.save(1, FILES, {})
    assert callable(damage)
    damage(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(path)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        CheckpointStore(tmp_path / "file", 2).save(1, FILES, {})
