"""Every checkpoint on disk is whole, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1, keep_best=True)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        store.save(step, FILES, {} if loss is None else {"loss": loss})
    assert store.steps() == [2, 5]
    assert store.best() == (2, 1.0)
    store.save(6, FILES, {"loss": 1.0})
    assert store.steps() == [6], "of equals the newest"


def test_where_the_new_one_cannot_take_its_place_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, 1)
    store.save(1, FILES, {"is": "old"})
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        if source.name == ".step-00000001.tmp":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OutputError, match="Input/output"):
        store.save(1, FILES, {"is": "new"})
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert open_checkpoint(tmp_path / "step-00000001").header == {"is": "old"}


# What a save asks the system for, in the order in which it may be the last thing it does.
CALLS = ("replace", "fsync", "mkdir", "rmdir", "unlink")


def killed_at(call: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that ends at its so-manieth call of CALLS; whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os._exit(9)
            return function(*arguments, **named)

        return counted

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("again", [False, True], ids=["another-step", "same-step"])
def test_killed_at_any_call_of_a_save_the_old_checkpoint_or_the_new_one_is_there_whole(
    tmp_path: Path, again: bool
) -> None:
    """Also where only one is kept, and where a run that went back comes to the same step anew."""
    step, calls = 1 if again else 2, 0
    while True:
        calls += 1
        folder = tmp_path / str(calls)
        store = CheckpointStore(folder, 1)
        store.save(1, FILES, {"is": "old"})
        killed = killed_at(calls, partial(store.save, step, FILES, {"is": "new"}))
        store.remove_leftovers()
        found, wrong = open_newest(folder)
        assert found is not None
        assert not wrong
        assert torch.equal(found.tensors("weights")["a"], FILES["weights"]["a"])
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
        if not killed:
            assert found.header == {"is": "new"}
            break
    assert calls > 8, "the calls of a save were counted"
