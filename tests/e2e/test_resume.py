"""Going on with a run, seeing whether it would come to the same bits, and going back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acmsao_cli.engine.assemble import Run
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import Stop
from acmsao_cli.launch import attempts

FUSED = ("-s", "optimizer.fused_backward=true", "-s", "training.clip_norm=null")


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def last_state(run: Path) -> dict[str, bytes]:
    """The files of the newest checkpoint that hold tensors."""
    newest = max((run / "checkpoints").glob("step-*"))
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def test_steps_that_are_taken_again_come_out_the_same_and_leave_the_run_as_it_is(
    acmsao: Any, lm: Path
) -> None:
    assert acmsao("train", str(lm), "-o", "out").code == 0
    before = everything(Path("out"))
    verified = acmsao("resume", "--verify", "out", "--json")
    assert verified.code == 0, verified.err
    events = [json.loads(line) for line in verified.out.splitlines()]
    replayed = [event for event in events if event["event"] == "replayed"]
    assert [(one["step"], one["same"], one["weights_compared"]) for one in replayed] == [
        (5, True, False),
        (6, True, True),
    ]
    assert events[-1]["text"] == "2 steps from step 4 came out the same to the bit"
    assert everything(Path("out")) == before

    metrics = Path("out/metrics.jsonl")
    rows = read_metrics(metrics)
    rows[4]["loss"] += 1e-7
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    differs = acmsao("resume", "--verify", "out")
    assert differs.code == 5
    assert "does not come to the same bits: step 5: loss was" in differs.err
    assert "DIFFERENT" in differs.out


@pytest.mark.parametrize("family", ["lm", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_on_a_cpu_deterministic_kernels_are_those_it_takes_anyway(
    acmsao: Any, family: str, request: pytest.FixtureRequest
) -> None:
    """The bits are the same; but it is another run, as on a GPU, and not gone on with as one."""
    recipe, asked = str(request.getfixturevalue(family)), ("-s", "training.deterministic=true")
    assert acmsao("train", recipe, "-o", "usual").code == 0
    done = acmsao("train", recipe, "-o", "asked", *asked)
    assert done.code == 0, done.err
    assert last_state(Path("asked")) == last_state(Path("usual"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert acmsao("resume", "--verify", "asked").code == 0
    refused = acmsao("train", recipe, "-o", "usual", *asked)
    assert refused.code == 5
    assert "training.deterministic: false in the run, true now" in refused.err


def test_a_run_without_an_older_checkpoint_is_taken_again_from_its_beginning(
    acmsao: Any, lm: Path
) -> None:
    assert acmsao("train", str(lm), "-o", "out", "-s", "checkpoint.keep=1").code == 0
    verified = acmsao("resume", "--verify", "out", "--steps", "3")
    assert verified.code == 0, verified.err
    assert "3 steps from the beginning came out the same" in verified.out


def test_a_run_goes_on_by_its_folder_alone(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("train", str(lm), "-s", "checkpoint.every=2", "-o")
    assert acmsao(*options, "whole").code == 0
    asked = Stop.asked_to_save

    def stop_at_once(self: Stop) -> bool:
        self.number = 15
        return asked(self)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "asked_to_save", stop_at_once)
        assert acmsao(*options, "parts").code == 143
    gone_on = acmsao("resume", "parts")
    assert gone_on.code == 0, gone_on.err
    assert "acmsao train chat" in gone_on.out, "under the recipe's name, which files are called by"
    assert sorted(path.name for path in Path("parts/final").iterdir()) == sorted(
        path.name for path in Path("whole/final").iterdir()
    )
    assert last_state(Path("parts")) == last_state(Path("whole"))
    again = acmsao(*options, "parts")
    assert (again.code, "already done" in again.out) == (0, True)


def test_what_is_no_run_cannot_be_resumed(acmsao: Any, tmp_path: Path) -> None:
    for path in ("nowhere", str(tmp_path)):
        refused = acmsao("resume", path)
        assert refused.code == 5
        assert "is not a run" in refused.err
    assert acmsao("resume", "nowhere", "--steps", "2").code == 2


@pytest.mark.parametrize(("every", "back"), [(2, 2), (100, 0)], ids=["checkpoint", "beginning"])
def test_a_step_that_was_half_applied_is_gone_back_from_and_left_out(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch, every: int, back: int
) -> None:
    """To the bits of a run in which it was never tried."""
    assemble = attempts.assemble

    def poisoned_run(*arguments: Any, **more: Any) -> Any:
        run = assemble(*arguments, **more)

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf") if run.step == 3 else gradient

        list(run.parameters.values())[4].register_hook(poison)
        return run

    def forewarned_run(*arguments: Any, **more: Any) -> Any:
        run = assemble(*arguments, **more)
        type(run).poisoned = property(lambda self: {4: "gradient norm"}, lambda self, value: None)
        return run

    options = ("train", str(lm), *FUSED, "-s", f"checkpoint.every={every}", "-o")
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "assemble", poisoned_run)
        done = acmsao(*options, "back")
    assert done.code == 0, done.err
    assert f"half applied; going back to step {back}, to leave it out" in done.out
    rows = read_metrics(Path("back/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["left_out"] for row in rows if row["left_out"]] == ["gradient norm"]
    assert acmsao("resume", "--verify", "back").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "poisoned", {}, raising=False)
        patch.setattr(attempts, "assemble", forewarned_run)
        assert acmsao(*options, "never").code == 0
    assert last_state(Path("back")) == last_state(Path("never"))
    for values in map(load_file, Path("back/checkpoints").glob("*/*.safetensors")):
        assert all(value.isfinite().all() for value in values.values())


def test_steps_that_are_half_applied_again_and_again_end_the_run(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assemble = attempts.assemble

    def poisoned_run(*arguments: Any, **more: Any) -> Any:
        run = assemble(*arguments, **more)

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("inf") if run.step >= 2 else gradient

        list(run.parameters.values())[4].register_hook(poison)
        return run

    monkeypatch.setattr(attempts, "assemble", poisoned_run)
    options = ("-s", "training.nonfinite_steps=2", "-o", "out")
    ended = acmsao("train", str(lm), *FUSED, *options)
    assert ended.code == 7
    assert "of step 4 is not finite" in ended.err
    assert "the last good checkpoint is at step 2" in ended.err
