"""What changed since a run's checkpoint is noticed by content: refused, or told and allowed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome
from micro.shelf import write_recipe

from acmsao_cli import identity
from acmsao_cli.checkpoint.store import newest_checkpoint, open_checkpoint
from acmsao_cli.cli.app import main
from acmsao_cli.engine import continuation
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.report import read_metrics

RUN = RunFolder(Path("out"))
WEIGHTS = Path("lm/model.safetensors")
# The run was begun with a step less than its recipe asks for.
LONGER = {"step": 2, "what": "recipe", "change": "training.steps: 2 -> 3"}


@pytest.fixture(scope="module")
def begun(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, its data, and two steps of a run from which one can go on."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(shelf / "lm", folder / "lm")
    shutil.copy(shelf / "chats.jsonl", folder)
    recipe = write_recipe(
        folder / "mine.yaml",
        model={"family": "causal_lm", "source": "./lm"},
        method={"kind": "full"},
        data={"source": "./chats.jsonl", "max_length": 64},
        optimizer={"lr": 0.01},
        training={"steps": 3, "batch_size": 4},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit, match="0"):
            main(["train", str(recipe), "-o", "out", "-s", "training.steps=2"])
    return folder


@pytest.fixture
def moved(acmsao: Any, begun: Path, tmp_path: Path) -> Path:
    """The run, its model and its data, in the current folder."""
    return Path(shutil.copytree(begun, tmp_path, dirs_exist_ok=True))


def going_on(acmsao: Any, *options: str) -> Outcome:
    outcome: Outcome = acmsao("train", "mine.yaml", "-o", "out", *options)
    return outcome


def goes_on(acmsao: Any, *options: str) -> str:
    """What was said by a run that went on; a line, however long."""
    outcome = going_on(acmsao, *options)
    assert outcome.code == 0, outcome.err
    return " ".join(outcome.out.split())


def refused(acmsao: Any, *words: str) -> None:
    """The run does not go on, says these words, and nothing in its folder changes."""
    before = {file: file.read_bytes() for file in RUN.path.rglob("*.json")}
    outcome = going_on(acmsao)
    assert outcome.code == 5, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    said = " ".join(outcome.err.split())
    for word in words:
        assert word in said
    assert before == {file: file.read_bytes() for file in RUN.path.rglob("*.json")}


def header() -> dict[str, Any]:
    newest = newest_checkpoint(RUN.checkpoints)
    assert newest is not None
    return dict(open_checkpoint(newest).header)


def changes_but_the_length() -> list[Any]:
    """What is recorded beside that the run became longer, which is."""
    first, *others = header()["changes"]
    assert first == LONGER
    return others


def test_what_was_moved_and_touched_is_the_same(acmsao: Any, moved: Path) -> None:
    was = header()
    WEIGHTS.touch()
    said = goes_on(acmsao)
    assert "changed since the checkpoint: model.source: " in said
    assert "changed since the checkpoint: data.source: " in said
    assert {key: header()[key] for key in ("model", "data")} == {
        key: was[key] for key in ("model", "data")
    }
    assert header()["changes"] == [LONGER]
    for name in ("data.json", "model.json"):
        assert str(moved) not in (RUN.path / name).read_text()


def test_a_byte_of_the_weights_is_noticed_though_size_and_time_are_as_they_were(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on(acmsao)
    read: list[str] = []
    hashing = identity.sha256_of

    def counted(stream: Any, *rest: Any) -> str:
        read.append(stream.name)
        return hashing(stream, *rest)

    monkeypatch.setattr(identity, "sha256_of", counted)
    assert "already done" in goes_on(acmsao)
    assert not [name for name in read if "/lm/" in name], "no stamp has changed"
    stamp, content = WEIGHTS.stat(), bytearray(WEIGHTS.read_bytes())
    content[-1] ^= 1
    WEIGHTS.write_bytes(content)
    os.utime(WEIGHTS, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    refused(acmsao, "the model at", "changed: model.safetensors", "--allow-changed model")
    assert [Path(name).name for name in read if "/lm/" in name] == ["model.safetensors"]


def test_another_model_is_gone_on_with_where_that_is_allowed(acmsao: Any, moved: Path) -> None:
    settings = Path("lm/tokenizer_config.json")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"note": "mine"}))
    Path("lm/merges.txt").write_text("")
    refused(acmsao, "changed: tokenizer_config.json", "added: merges.txt")
    said = goes_on(acmsao, "--allow-changed", "model", "--allow-changed", "data")
    assert "the model changed, and the run goes on changed: tokenizer_config.json" in said
    assert "--allow-changed data: the data had not changed" in said
    assert [change["what"] for change in changes_but_the_length()] == ["model", "model"]
    again = goes_on(acmsao, "--allow-changed", "model")
    assert "already done" in again, "it is the run's model from here on"
    assert "--allow-changed model has no effect: the run is finished" in again


def test_a_line_of_text_that_changed_is_named(acmsao: Any, moved: Path) -> None:
    lines = Path("chats.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace("it is 4", "it is four")
    Path("chats.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    refused(
        acmsao,
        "the data at",
        "changed: chats.jsonl:5 added: chats.jsonl:11",
        "--allow-changed data",
    )
    assert "the data changed" in goes_on(acmsao, "--allow-changed", "data")
    assert "chats.jsonl:11" in RUN.data_items()
    first, *_ = changes_but_the_length()
    assert first == {"step": 2, "what": "data", "change": "changed: chats.jsonl:5"}
    summary = RUN.summary()
    assert summary is not None
    assert summary["changes"] == header()["changes"]


def test_a_recipe_that_changed_is_honoured_where_that_is_allowed(acmsao: Any, moved: Path) -> None:
    options = ("-s", "optimizer.lr=0.02", "-s", "training.accumulation=2")
    said = goes_on(acmsao, "--allow-changed", "recipe", *options)
    assert "optimizer.lr: 0.01 -> 0.02" in said
    assert "training.accumulation: 1 -> 2" in said
    rows = read_metrics(RUN.metrics)
    assert [(row["lr"], row["accumulation"]) for row in rows] == [(0.01, 1), (0.01, 1), (0.02, 2)]
    assert header()["optimizer"]["groups"][0]["initial_lr"] == 0.02
    assert [change["what"] for change in changes_but_the_length()] == ["recipe", "recipe"]


def test_a_recipe_that_the_checkpoint_does_not_fit_is_refused_all_the_same(
    acmsao: Any, moved: Path
) -> None:
    for option, says in (("optimizer.name=lion", "adam"), ("model.dtype=bf16", "bfloat16")):
        outcome = going_on(acmsao, "--allow-changed", "recipe", "-s", option)
        assert outcome.code == 5, outcome.err
        assert says in outcome.err


def test_other_versions_and_threads_are_told(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = continuation.versions()
    monkeypatch.setattr(continuation, "versions", lambda: now | {"torch": "99.0", "typer": "99.0"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    said = goes_on(acmsao)
    told = f"bits may differ: torch {now['torch']} -> 99.0, threads 1 -> 7"
    assert told in said
    assert header()["made_with"]["torch"] == "99.0"
    assert [change["what"] for change in changes_but_the_length()] == ["made_with"] * 2


def test_what_cannot_have_changed_or_be_allowed_is_said(acmsao: Any, moved: Path) -> None:
    for command, why in (
        (("train", "mine.yaml", "--dry-run"), "a dry run compares nothing"),
        (("resume", "out"), "the run is finished"),
        (("resume", "out", "--verify"), "there is no checkpoint to compare with"),
    ):
        outcome = acmsao(*command, "--allow-changed", "data")
        said = " ".join(outcome.out.split())
        assert f"--allow-changed data has no effect: {why}" in said, outcome.err
    unknown = going_on(acmsao, "--allow-changed", "seed")
    assert unknown.code == 2
    assert all(name in unknown.err for name in ("model", "data", "recipe"))


def test_what_is_no_longer_noted_is_still_compared(acmsao: Any, moved: Path) -> None:
    (RUN.path / "data.json").write_text('{"items": {"chats.jsonl:1": {"stamp": "x"}}}')
    (RUN.path / "model.json").unlink()
    Path("chats.jsonl").write_text(Path("chats.jsonl").read_text().replace("is 7", "is seven"))
    refused(acmsao, "the data at", "cannot be named")
    assert "the data changed" in goes_on(acmsao, "--allow-changed", "data")
