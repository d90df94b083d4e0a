"""A checkpoint written beside the training has the bytes of one that the training waited for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from acmsao_cli.checkpoint import background
from acmsao_cli.checkpoint.background import Writer
from acmsao_cli.checkpoint.store import CheckpointStore
from acmsao_cli.errors import OutputError


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


def test_where_memory_for_a_copy_is_missing_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def save(*what: object) -> Path:
        threads.append(threading.current_thread().name)
        return tmp_path

    writer = Writer(save, aside=lambda: True)
    monkeypatch.setattr(background, "SHARE_OF_FREE_MEMORY", 0.0)
    writer.begin(1, files(), {})
    assert writer.written() == tmp_path
    monkeypatch.setattr(background, "SHARE_OF_FREE_MEMORY", 0.9)
    writer.begin(2, files(), {})
    writer.wait()
    assert threads[0] == threading.main_thread().name
    assert threads[1].startswith("checkpoint")
