"""What changed since a run's checkpoint is noticed by content: refused, or told and allowed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome
from micro.shelf import write_recipe

from acmsao_cli import identity
from acmsao_cli.checkpoint.store import newest_checkpoint, open_checkpoint
from acmsao_cli.cli.app import main
from acmsao_cli.engine import continuation, replay
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import PoisonedStepError, advance
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.step import NotFiniteError
from acmsao_cli.models.causal_lm.family import CausalLmFamily
from acmsao_cli.models.causal_lm.trainee import CausalLmTrainee

RUN = RunFolder(Path("out"))
WEIGHTS = Path("lm/model.safetensors")
LONGER = ("-s", "training.steps=4")
# The run was begun with a step less than its recipe asks for.
GREW = {"step": 2, "what": "recipe", "change": "training.steps: 2 -> 3"}


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


def refused(acmsao: Any, *words: str, options: Sequence[str] = ()) -> None:
    """The run does not go on, says these words, and nothing in its folder changes."""
    before = {file: file.read_bytes() for file in RUN.path.rglob("*.json")}
    outcome = going_on(acmsao, *options)
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
    assert first == GREW
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
    assert header()["changes"] == [GREW]
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
    says = ("the model at", "changed: model.safetensors", "--allow-changed model")
    refused(acmsao, *says, options=LONGER)
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
        (("train", "mine.yaml", "--dry-run"), "there is no checkpoint to compare with"),
        (("resume", "out"), "the run is finished"),
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


# A model that changes while a run uses it


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def changing(patch: pytest.MonkeyPatch, owner: type, name: str, spoil: Callable[[], None]) -> None:
    """Spoil something behind what the method does."""
    method = getattr(owner, name)

    def then_spoilt(self: Any, *rest: Any) -> Any:
        result = method(self, *rest)
        if str(getattr(result, "device", "")) != "meta":
            spoil()
        return result

    patch.setattr(owner, name, then_spoilt)


@pytest.mark.parametrize("options", [("-o", "out"), ("-o", "new")], ids=["resumed", "new"])
def test_a_model_that_changes_while_it_is_loaded_is_refused_before_a_step(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    changing(monkeypatch, CausalLmFamily, "open", lambda: change(WEIGHTS))
    outcome = acmsao("train", "mine.yaml", *options)
    assert outcome.code == 3, outcome.out
    assert "lm/model.safetensors changed since" in "".join(outcome.err.split("\n"))
    assert len(read_metrics(RUN.metrics)) == 2
    assert not Path("new/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "spoil", [change, lambda file: file.rename("away")], ids=["changed", "gone"]
)
def test_a_model_that_changes_before_it_is_hashed_costs_no_checkpoint_and_stays_unknown(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    loaded, hashing = threading.Event(), identity.read_item
    whole = WEIGHTS.read_bytes()

    def late(*arguments: Any, **more: Any) -> Any:
        assert loaded.wait(30)
        return hashing(*arguments, **more)

    def spoilt() -> None:
        spoil(WEIGHTS)
        loaded.set()

    shutil.rmtree("out")
    every = ("-s", "checkpoint.every=1")
    with monkeypatch.context() as patch:
        changing(patch, CausalLmTrainee, "encode", spoilt)
        patch.setattr("acmsao_cli.models.identity.read_item", late)
        done = going_on(acmsao, *every)
    assert done.code == 0, done.err
    assert " ".join(done.out.split()).count("cannot say which model it is") == 1
    assert header()["model"] == ""

    WEIGHTS.write_bytes(whole)
    says = ("the model at", "may not be what step-00000003", "could not be identified")
    refused(acmsao, *says, options=LONGER)
    said = goes_on(acmsao, *LONGER, "--allow-changed", "model")
    assert "the model changed, and the run goes on it could not be identified then" in said
    assert header()["model"] != ""
    goes_on(acmsao, "-s", "training.steps=5")


# A finished run


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: Path("chats.jsonl").unlink(),
        lambda: Path("chats.jsonl").write_text(Path("chats.jsonl").read_text() * 2),
        lambda: change(WEIGHTS),
        lambda: shutil.rmtree("lm"),
    ],
    ids=["no data", "other data", "another model", "no model"],
)
def test_a_finished_run_is_done_whatever_became_of_what_it_was_made_from(
    acmsao: Any, moved: Path, spoil: Callable[[], None]
) -> None:
    goes_on(acmsao)
    spoil()
    for options in ((), ("--dry-run",), ("-s", "checkpoint.keep=1")):
        assert "already done" in goes_on(acmsao, *options)
    for options in (LONGER, ("-s", "optimizer.lr=0.02")):
        assert going_on(acmsao, *options).code in (3, 5)


def test_a_rehearsal_compares_as_the_run_would(acmsao: Any, moved: Path) -> None:
    Path("chats.jsonl").write_text(Path("chats.jsonl").read_text().replace("is 7", "is seven"))
    refused(acmsao, "changed: chats.jsonl:8", options=["--dry-run"])
    said = goes_on(acmsao, "--dry-run", "--allow-changed", "data")
    assert "the data changed, and the run goes on changed: chats.jsonl:8" in said
    assert len(read_metrics(RUN.metrics)) == 2


# Steps that are taken again


def verified(acmsao: Any, code: int, *options: str) -> str:
    """What was said of a run whose steps are taken again; a line, however long."""
    outcome: Outcome = acmsao("resume", "--verify", "out", *options)
    assert outcome.code == code, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    return " ".join((outcome.err + outcome.out).split())


def another_caption() -> None:
    Path("chats.jsonl").write_text(Path("chats.jsonl").read_text().replace("is 7", "is seven"))


@pytest.mark.parametrize("checkpoints", ["one", "none"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (another_caption, "changed: chats.jsonl:8"),
        (lambda: change(WEIGHTS), "changed: model.safetensors"),
    ],
    ids=["data", "model"],
)
def test_steps_from_the_beginning_are_compared_by_what_the_run_was_made_from(
    acmsao: Any, begun: Path, moved: Path, spoil: Callable[[], None], says: str, checkpoints: str
) -> None:
    RUN.recipe.write_text(RUN.recipe.read_text().replace(str(begun), str(moved)))
    if checkpoints == "none":
        shutil.rmtree(RUN.checkpoints)
    assert "2 steps from the beginning came out the same" in verified(acmsao, 0)
    spoil()
    said = verified(acmsao, 5)
    assert says in said
    assert "the same bits" not in said
    kind = "data" if "chats" in says else "model"
    allowed = acmsao("resume", "--verify", "out", "--allow-changed", kind)
    assert f"--allow-changed {kind}: the {kind} changed" in allowed.out
    assert "loss" in allowed.out


def test_a_run_that_was_changed_is_not_taken_again_from_its_beginning(
    acmsao: Any, moved: Path
) -> None:
    another_caption()
    goes_on(acmsao, "--allow-changed", "data", "-s", "checkpoint.keep=1")
    assert "from its beginning it cannot be taken again: at step 2 its" in verified(acmsao, 5)


def test_steps_that_are_not_finite_now_are_a_difference(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (NotFiniteError("loss"), PoisonedStepError(2, "loss")):

        def not_finite(run: Any, *rest: Any, error: Exception = error) -> Any:
            if run.step == 1:
                raise error
            return advance(run, *rest)

        monkeypatch.setattr(replay, "advance", not_finite)
        said = verified(acmsao, 5)
        assert "does not come to the same bits: step 2: its loss is not finite now" in said
        assert "DIFFERENT" in said


def test_steps_that_find_no_memory_say_what_would_help(
    acmsao: Any, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: Any, batch: Any) -> Any:
        if self.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, batch)

    loss = CausalLmTrainee.loss
    monkeypatch.setattr(CausalLmTrainee, "loss", too_large)
    said = verified(acmsao, 8)
    assert "out of memory: tried to allocate 2.00 GiB" in said
    assert "training.gradient_checkpointing=true" in said


def test_steps_that_will_not_fit_are_not_begun(acmsao: Any, moved: Path) -> None:
    recipe = RUN.recipe.read_text()
    assert "budget_gib: null" in recipe
    RUN.recipe.write_text(recipe.replace("budget_gib: null", "budget_gib: 0.0001"))
    assert "this run needs" in verified(acmsao, 8)
