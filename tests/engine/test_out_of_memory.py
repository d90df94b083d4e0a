"""Memory that runs out in a run: what was reached is saved, unless a step is half applied."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.checkpoint.store import newest_checkpoint
from acmsao_cli.engine.events import Event
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import train
from acmsao_cli.engine.out_of_memory import EARLY_STEPS
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import Stop
from acmsao_cli.errors import MemoryRanOutError

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB")
LATE = EARLY_STEPS + 2


def ignore(event: Event) -> None:
    """A listener that does not listen."""


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.parameters.items()}


def failing_forward(run: Any, at_step: int) -> None:
    """In this step there is no memory for what forward keeps."""
    loss = run.core.trainee.loss

    def full(batch: Any) -> Any:
        if run.step == at_step:
            raise FULL
        return loss(batch)

    run.core.trainee.loss = full


def failing_update(run: Any, at_step: int) -> None:
    """In this step there is no memory for the second weight's update."""
    second = list(run.parameters.values())[1]
    step_parameter = type(run.core.optimizer).step_parameter
    seen: list[Any] = []

    def full(parameter: Any, gradient: Any = None) -> None:
        if run.step == at_step and parameter is second:
            raise FULL
        seen.append(parameter)
        step_parameter(run.core.optimizer, parameter, gradient)

    run.core.optimizer.step_parameter = full


@pytest.mark.parametrize("fused", [False, True])
def test_a_late_failure_saves_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, make_run: Any, make_config: Any, gone_on: Any, fused: bool
) -> None:
    config = make_config(
        checkpoint={"every": 100},
        optimizer={"fused_backward": fused},
        training={"clip_norm": None},
    )
    whole = make_run(config)
    train(whole, RunFolder(tmp_path / "whole"), Stop(), ignore)

    run, folder = make_run(config), RunFolder(tmp_path / "parts")
    failing_forward(run, LATE)
    with pytest.raises(MemoryRanOutError, match=f"in step {LATE + 1}: tried to alloc") as told:
        train(run, folder, Stop(), ignore)
    assert not told.value.early
    assert f"checkpoint is at step {LATE}" in told.value.message
    assert told.value.exit_code == 8

    again = gone_on(config, folder)
    assert again.step == LATE
    train(again, folder, Stop(), ignore)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name])
    assert [row["step"] for row in read_metrics(folder.metrics)] == list(range(1, 9))


def test_a_half_applied_step_is_not_saved(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    config = make_config(
        checkpoint={"every": 2}, optimizer={"fused_backward": True}, training={"clip_norm": None}
    )
    run, folder = make_run(config), RunFolder(tmp_path / "run")
    failing_update(run, LATE)
    with pytest.raises(MemoryRanOutError, match="half applied") as told:
        train(run, folder, Stop(), ignore)
    assert newest(folder).step == LATE - LATE % 2
    assert f"the last checkpoint is at step {LATE - LATE % 2}" in told.value.message


@pytest.mark.parametrize("at", range(EARLY_STEPS))
def test_an_early_failure_saves_nothing_and_says_so(
    tmp_path: Path, make_run: Any, make_config: Any, at: int
) -> None:
    run, folder = make_run(make_config(checkpoint={"every": 100})), RunFolder(tmp_path / "run")
    failing_forward(run, at)
    with pytest.raises(MemoryRanOutError) as told:
        train(run, folder, Stop(), ignore)
    assert told.value.early
    assert newest_checkpoint(folder.checkpoints) is None


def test_an_early_failure_leaves_no_checkpoint_of_its_settings(
    tmp_path: Path, make_run: Any, make_config: Any
) -> None:
    run, folder = make_run(make_config(checkpoint={"every": 1})), RunFolder(tmp_path / "run")
    failing_forward(run, EARLY_STEPS - 1)
    with pytest.raises(MemoryRanOutError):
        train(run, folder, Stop(), ignore)
    assert newest_checkpoint(folder.checkpoints) is None


def test_an_early_failure_of_a_run_that_went_back_leaves_what_was_beyond(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    config, folder = make_config(checkpoint={"every": 4}), RunFolder(tmp_path / "run")
    train(make_run(config), folder, Stop(), ignore)
    last = newest(folder).step
    run = make_run(config)  # from the start again
    failing_forward(run, 1)
    with pytest.raises(MemoryRanOutError):
        train(run, folder, Stop(), ignore)
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["left-step-00000004", f"left-step-{last:08d}"]


def test_a_failure_while_samples_are_drawn_saves_and_is_no_steps(
    tmp_path: Path, make_run: Any, make_config: Any, newest: Any
) -> None:
    config = make_config(checkpoint={"every": 100}, samples={"every": 1, "prompts": ["a"]})
    run, folder = make_run(config), RunFolder(tmp_path / "run")

    def full() -> Any:
        raise FULL

    run.core.trainee.sample = full
    with pytest.raises(MemoryRanOutError, match="while drawing samples after step 1") as told:
        train(run, folder, Stop(), ignore, sample_first=False)
    assert not told.value.early
    assert newest(folder).step == 1


def test_what_the_failed_step_held_is_let_go_of_before_saving(
    tmp_path: Path, make_run: Any, make_config: Any
) -> None:
    run = make_run(make_config(checkpoint={"every": 100}))
    held: list[weakref.ref[torch.Tensor]] = []
    loss, state = run.core.trainee.loss, run.state

    def full(batch: Any) -> Any:
        found = loss(batch)
        if run.step == LATE:
            held.append(weakref.ref(found))
            raise FULL
        return found

    def watched() -> Any:
        assert [one() for one in held] == [None]
        assert all(parameter.grad is None for parameter in run.parameters.values())
        return state()

    run.core.trainee.loss, run.state = full, watched
    gc.disable()
    try:
        with pytest.raises(MemoryRanOutError, match=f"at step {LATE}"):
            train(run, RunFolder(tmp_path / "run"), Stop(), ignore)
    finally:
        gc.enable()
    assert held


def test_another_fault_is_no_lack_of_memory(tmp_path: Path, make_run: Any) -> None:
    run = make_run()

    def broken(batch: Any) -> Any:
        raise RuntimeError("shapes differ")

    run.core.trainee.loss = broken
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(run, RunFolder(tmp_path / "run"), Stop(), ignore)
