"""A run writes in its own folder only, through no link, and files that others may read as usual."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acmsao_cli.checkpoint.store import CheckpointStore
from acmsao_cli.engine import loop
from acmsao_cli.engine.folder import LOCK
from acmsao_cli.errors import OutputError
from acmsao_cli.writing import own_folder

SHORT = ("-s", "training.steps=2")
LORA = {"method": {"kind": "lora", "rank": 2}, "output": {"formats": ["peft", "merged"]}}


@pytest.fixture
def adapters(lm: Path) -> Path:
    """The language model's recipe, for both kinds of files that are left of a LoRA."""
    lm.write_text(json.dumps(json.loads(lm.read_text()) | LORA))
    return lm


@pytest.fixture(params=[0o002, 0o077], ids=["002", "077"])
def umask(request: Any) -> Iterator[int]:
    """What a user lets others do."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_permissions_that_the_user_gives_new_ones(
    acmsao: Any, adapters: Path, umask: int
) -> None:
    done = acmsao("train", str(adapters), "-o", "out", *SHORT)
    assert done.code == 0, done.err
    found = [Path("out"), *Path("out").rglob("*")]
    assert len(found) > 20
    for path in found:
        usual = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == usual & ~umask, path


def test_all_that_a_run_writes_is_in_its_folder(acmsao: Any, adapters: Path) -> None:
    before = set(Path().rglob("*"))
    assert acmsao("train", str(adapters), "-o", "out", *SHORT).code == 0
    assert {path.parts[0] for path in set(Path().rglob("*")) - before} == {"out"}
    left = {path.name for path in Path("out").rglob("*")}
    assert not [name for name in left if name.endswith((".part", ".tmp", ".whole"))]


FILES = ("run.yaml", "metrics.jsonl", "data.json", "summary.json", "loss.png", LOCK)


def test_a_link_that_was_planted_for_a_file_is_replaced_or_refused(acmsao: Any, lm: Path) -> None:
    """The lock is opened as it is, so a link in its place is refused; the others are renamed to."""
    Path("theirs").mkdir()
    for name in FILES:
        Path("theirs", name).write_text("precious")
    Path("out").mkdir()
    Path("out", LOCK).symlink_to(Path("theirs", LOCK).absolute())
    refused = acmsao("train", str(lm), "-o", "out", *SHORT)
    assert refused.code == 6
    Path("out", LOCK).unlink()
    Path("out", LOCK).touch()
    for name in FILES:
        if name != LOCK:
            Path("out", name).symlink_to(Path("theirs", name).absolute())
    done = acmsao("train", str(lm), "-o", "out", *SHORT)
    assert done.code == 0, done.err
    for name in FILES:
        assert Path("theirs", name).read_text() == "precious"
        assert not Path("out", name).is_symlink()


def test_a_link_that_is_planted_while_steps_are_taken_is_not_followed(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = loop.advance

    def planted(run: Any, *rest: Any) -> Any:
        metrics = Path("out/metrics.jsonl")
        if run.step == 1:
            metrics.rename("moved")
            metrics.symlink_to(Path("theirs").absolute())
        return advance(run, *rest)

    Path("theirs").write_text("precious")
    monkeypatch.setattr(loop, "advance", planted)
    assert acmsao("train", str(lm), "-o", "out", *SHORT).code == 6
    assert Path("theirs").read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "samples", "final"])
def test_a_link_in_the_place_of_a_folder_is_refused_before_anything_is_read(
    acmsao: Any, lm: Path, name: str
) -> None:
    Path("theirs").mkdir()
    Path("out").mkdir()
    Path("out", LOCK).touch()
    Path("out", name).symlink_to(Path("theirs").absolute())
    refused = acmsao("train", str(lm), "-o", "out", "-s", "model.source=./nowhere")
    assert refused.code == 6
    assert f"out/{name}: it is a link" in refused.err
    assert not list(Path("theirs").iterdir())


def test_a_run_folder_may_be_a_link_itself(acmsao: Any, lm: Path) -> None:
    Path("large-disk").mkdir()
    Path("out").symlink_to(Path("large-disk").absolute())
    assert acmsao("train", str(lm), "-o", "out", *SHORT).code == 0
    assert Path("large-disk/summary.json").is_file()


def test_checkpoints_are_not_saved_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="it is a link"):
        CheckpointStore(tmp_path / "checkpoints", 2).save(1, {}, {})
    assert not list((tmp_path / "theirs").iterdir())


def test_a_folder_of_ones_own_is_made_where_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="it is a link"):
        own_folder(tmp_path / "nowhere")
    assert not (tmp_path / "gone").exists()
    assert own_folder(tmp_path / "a" / "b").is_dir()
