"""Every checkpoint on disk is whole, or refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from acmsao_cli.checkpoint.store import (
    MANIFEST,
    CheckpointStore,
    newest_checkpoint,
    open_checkpoint,
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
