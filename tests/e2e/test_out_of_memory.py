"""Memory that runs out in a run from the command line: the ladder, and what is left on the disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from acmsao_cli.engine import loop
from acmsao_cli.launch import attempts
from acmsao_cli.memory import ladder
from acmsao_cli.models.causal_lm.trainee import CausalLmTrainee

# As it is by default, but said: no rung of the ladder.
CHUNKED = ("-s", "memory.loss_chunk=auto")
CHECKPOINTED = ("-s", "training.gradient_checkpointing=true")
FUSED = ("-s", "optimizer.fused_backward=true", "-s", "training.clip_norm=null")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return dict(load_file(newest / "weights.safetensors"))


def rows_of(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes real steps run out of memory until the recipe is as `fits` wants it."""
    loss = CausalLmTrainee.loss

    def install(fits: Callable[[Any], bool], after_passes: int = 0) -> None:
        passes = [0]

        def full(self: Any, batch: Any) -> Any:
            if self.device.type != "meta":
                passes[0] += 1
                if passes[0] > after_passes and not fits(self.recipe):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return loss(self, batch)

        monkeypatch.setattr(CausalLmTrainee, "loss", full)

    return install


# What the ladder comes to, the options that say the same at the start, and passes before it.
RUNGS = [
    (lambda r: r.training.gradient_checkpointing, CHECKPOINTED, 2),
    (lambda r: r.memory.loss_chunk == 32, (*CHECKPOINTED, "-s", "memory.loss_chunk=32"), 0),
    (
        lambda r: r.training.batch_size == 1,
        (
            *(*CHECKPOINTED, "-s", "memory.loss_chunk=32"),
            *("-s", "training.batch_size=1", "-s", "training.accumulation=4"),
        ),
        1,
    ),
]


@pytest.mark.parametrize(("fits", "options", "passes"), RUNGS)
def test_a_run_that_was_changed_is_one_that_was_started_so(
    acmsao: Any, lm: Path, too_large: Any, fits: Any, options: tuple[str, ...], passes: int
) -> None:
    assert acmsao("train", str(lm), "-o", "asked", *options).code == 0
    too_large(fits, passes)
    done = acmsao("train", str(lm), "-o", "changed")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert f"out of memory in step {passes + 1}: tried to allocate 2.00 GiB" in said
    assert "training.gradient_checkpointing=true (was false)" in said
    assert rows_of(Path("changed")) == rows_of(Path("asked"))
    for name, value in weights_of(Path("asked")).items():
        assert torch.equal(value, weights_of(Path("changed"))[name]), name
    written = (Path("changed") / "run.yaml").read_text()
    assert "gradient_checkpointing: true" in written
    assert "# ladder out of memory in step" in written


def test_the_resolved_recipe_starts_the_changed_run(acmsao: Any, lm: Path, too_large: Any) -> None:
    too_large(lambda recipe: recipe.training.batch_size == 2)
    assert acmsao("train", str(lm), "-o", "changed", *CHUNKED).code == 0
    again = acmsao("train", "changed/run.yaml", "-o", "again")
    assert again.code == 0, again.err
    assert "out of memory" not in again.out
    assert rows_of(Path("again")) == rows_of(Path("changed"))


def test_streamed_blocks_and_activations_come_last_on_a_card(
    acmsao: Any, lm: Path, too_large: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_card = partial(ladder.next_rung)
    monkeypatch.setattr(
        attempts,
        "next_rung",
        lambda *where, on_gpu, continued: on_a_card(*where, on_gpu=True, continued=continued),
    )
    away = ("-s", "memory.resident_blocks=0", "-s", "memory.offload_activations=true")
    options = ("train", str(lm), *FUSED, *CHECKPOINTED, *away, "-o", "asked")
    assert acmsao(*options).code == 0
    too_large(lambda recipe: recipe.memory.offload_activations)
    done = acmsao("train", str(lm), "-o", "changed", *FUSED, *CHUNKED)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "memory.resident_blocks=0" in said
    assert "memory.offload_activations=true (was false)" in said
    for name, value in weights_of(Path("asked")).items():
        assert torch.equal(value, weights_of(Path("changed"))[name]), name


def test_what_is_said_stays_and_the_end_of_the_ladder_is_told(
    acmsao: Any, lm: Path, too_large: Any
) -> None:
    too_large(lambda recipe: False)
    done = acmsao(
        *("train", str(lm), "-s", "training.gradient_checkpointing=false"),
        *("-s", "training.batch_size=2"),
    )
    assert done.code == 8
    assert "gradient_checkpointing=true" not in done.out
    assert "training.batch_size=1 (was 2)" in " ".join(done.out.split())
    assert "out of memory in step 1" in done.err
    assert "help:" in done.err
    assert "Traceback" not in done.err


def test_a_later_lack_of_memory_saves_and_the_same_command_goes_on(
    acmsao: Any, lm: Path, too_large: Any
) -> None:
    assert acmsao("train", str(lm), "-o", "whole").code == 0
    too_large(lambda recipe: recipe.training.gradient_checkpointing, after_passes=5)
    first = acmsao("train", str(lm), "-o", "parts")
    assert first.code == 8
    assert "the last checkpoint is at step 5" in " ".join(first.err.split())
    second = acmsao("train", str(lm), "-o", "parts")
    assert second.code == 0, second.err
    assert "continuing at step 5" in second.out
    losses = [[loss for _, loss in rows_of(Path(run))] for run in ("parts", "whole")]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize("changes", ["batch", "checkpointing"])
def test_a_changed_run_that_was_stopped_goes_on_changed(
    acmsao: Any, lm: Path, too_large: Any, monkeypatch: pytest.MonkeyPatch, changes: str
) -> None:
    if changes == "batch":
        too_large(lambda recipe: recipe.training.batch_size == 1)
    else:
        too_large(lambda recipe: recipe.training.gradient_checkpointing)
    options = ("train", str(lm), *CHUNKED, "-o")
    assert acmsao(*options, "whole").code == 0
    advance = loop.advance

    def interrupted(run: Any, *rest: Any) -> Any:
        if run.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return advance(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "advance", interrupted)
        assert acmsao(*options, "parts").code == 143
    done = acmsao(*options, "parts")
    assert done.code == 0, done.err
    assert "continuing at step 4" in done.out
    assert "out of memory" not in done.out
    assert rows_of(Path("parts")) == rows_of(Path("whole"))
    for name, value in weights_of(Path("whole")).items():
        assert torch.equal(value, weights_of(Path("parts"))[name]), name


def test_a_signal_between_two_attempts_is_heeded(
    acmsao: Any, lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, batch: Any) -> Any:
        if self.device.type != "meta":
            signal.raise_signal(signal.SIGTERM)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    loss = CausalLmTrainee.loss
    monkeypatch.setattr(
        CausalLmTrainee,
        "loss",
        lambda self, batch: (loss if self.device.type == "meta" else full)(self, batch),
    )
    done = acmsao("train", str(lm), "-o", "out")
    assert done.code == 143, done.err
    assert "nothing new had to be saved" in done.err
