"""A checkpoint written beside the training has the bytes of one that the training waited for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import OutOfMemoryError as OOM

from acmsao_cli.checkpoint import background
from acmsao_cli.checkpoint.background import Writer
from acmsao_cli.checkpoint.store import CheckpointStore, num_bytes
from acmsao_cli.errors import OutputError
from acmsao_cli.host_memory import Room


def files() -> dict[str, dict[str, torch.Tensor]]:
    return {
        "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"n": torch.tensor(3), "part": torch.arange(10)[2:4], "none": torch.ones(0)},
    }


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("step-*/*")}


def test_the_bytes_are_the_same(tmp_path: Path) -> None:
    for aside in (True, False):
        store = CheckpointStore(tmp_path / str(aside), 2)
        writer = Writer(store.save, aside=lambda aside=aside: aside)  # type: ignore[misc]
        writer.begin(3, files(), {"seed": 1})
        assert writer.wait() == store.folder / "step-00000003"
    assert content(tmp_path / "True") == content(tmp_path / "False")


def test_what_changes_meanwhile_is_not_what_is_written(tmp_path: Path) -> None:
    """On a CPU above all, where a tensor to be written may be the very one that is trained."""
    goes_on, store = threading.Event(), CheckpointStore(tmp_path / "aside", 2)

    def late(*what: object) -> Path:
        assert goes_on.wait(30)
        return store.save(*what)  # type: ignore[arg-type]

    writer, tensors = Writer(late, aside=lambda: True), files()
    writer.begin(3, tensors, {})
    assert writer.written() is None
    for one in (*tensors["weights"].values(), *tensors["optimizer"].values()):
        one.zero_()
    goes_on.set()
    writer.wait()
    CheckpointStore(tmp_path / "calm", 2).save(3, files(), {})
    assert content(tmp_path / "aside") == content(tmp_path / "calm")


@pytest.mark.parametrize("aside", [True, False])
def test_a_save_that_failed_is_told_once_and_the_next_is_tried(tmp_path: Path, aside: bool) -> None:
    def fails(*what: object) -> Path:
        raise OutputError("no room")

    writer = Writer(fails, aside=lambda: aside)
    writer.begin(1, files(), {})
    with pytest.raises(OutputError, match="no room"):
        writer.wait()
    assert writer.wait() is None
    writer.begin(2, files(), {})
    with pytest.raises(OutputError):
        writer.wait()


def thread_of_a_save(tmp_path: Path, at_most: int | None = None) -> str:
    """The name of the thread in which a writer saves."""
    threads: list[str] = []

    def save(*what: object) -> Path:
        threads.append(threading.current_thread().name)
        return tmp_path

    writer = Writer(save, aside=lambda: True, at_most=at_most)
    writer.begin(1, files(), {})
    assert writer.wait() == tmp_path
    return threads[0]


HERE = threading.main_thread().name


def test_where_memory_for_a_copy_is_missing_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free to the process decides, which may be less than the machine has free."""
    size = num_bytes(files())
    enough = int(size / background.SHARE_OF_FREE_MEMORY) + 1
    for free, thread in ((enough, "checkpoint"), (enough - 3, HERE)):
        monkeypatch.setattr(background, "host_memory", lambda free=free: Room(free, 2 * enough))
        assert thread_of_a_save(tmp_path).startswith(thread)


def test_no_copy_is_larger_than_it_may_be(tmp_path: Path) -> None:
    size = num_bytes(files())
    assert thread_of_a_save(tmp_path, at_most=size).startswith("checkpoint")
    assert thread_of_a_save(tmp_path, at_most=size - 1) == HERE


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory"), OOM("CUDA")])
def test_where_memory_runs_out_while_it_is_copied_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def copied(files: object) -> None:
        raise error

    monkeypatch.setattr(background, "copied", copied)
    assert thread_of_a_save(tmp_path) == HERE
