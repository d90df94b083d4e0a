"""Laws of steps that grow: nothing is skipped or seen twice, and nothing is forgotten."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.checkpoint.resume import require_same_recipe
from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.engine.assemble import count_steps
from acmsao_cli.engine.events import Event, StepDone
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import advance, train
from acmsao_cli.engine.noise import Noise
from acmsao_cli.engine.progress import (
    Progress,
    begin,
    saved_progress,
    scheduled_accumulation,
    steps_for,
)
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import Stop
from acmsao_cli.errors import CheckpointError, ConfigError, StoppedError

FUSED = {"fused_backward": True}
SCHEDULE = {"batch_schedule": [[2, 2], [5, 4]], "batch_lr": "linear"}
ADAPTIVE = {"accumulation": 2, "adaptive_batch": 8, "adaptive_patience": 2, "batch_lr": "sqrt"}


def ignore(event: Event) -> None:
    """A listener that does not listen."""


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    """What a step computed, without what it took."""
    passing = ("seconds", "memory_bytes", "memory")
    return [
        {key: value for key, value in row.items() if key not in passing}
        for row in read_metrics(folder.metrics)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"training": SCHEDULE},
        {"training": ADAPTIVE},
        {"training": {"clip": "delayed", "clip_norm": 0.2}, "optimizer": FUSED},
        {"training": SCHEDULE | {"clip": "two_pass", "clip_norm": 0.2}, "optimizer": FUSED},
        {"training": {"accumulation": 3, "noise_scale": True}},
    ],
    ids=["schedule", "adaptive", "delayed", "two-pass", "noise"],
)
@pytest.mark.parametrize("stopped_at", [2, 5])
def test_what_one_step_leaves_to_the_next_is_resumed_to_the_bit(
    tmp_path: Path, make_run: Any, make_config: Any, gone_on: Any, options: Any, stopped_at: int
) -> None:
    config = make_config(**options)
    whole, whole_folder = make_run(config), RunFolder(tmp_path / "whole")
    train(whole, whole_folder, Stop(), ignore)

    folder, stop = RunFolder(tmp_path / "parts"), Stop()

    def stop_there(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stopped_at:
            stop.number = signal.SIGTERM

    with pytest.raises(StoppedError):
        train(make_run(config), folder, stop, stop_there)
    resumed = gone_on(config, folder)
    assert resumed.step == stopped_at
    train(resumed, folder, Stop(), ignore)
    assert rows_of(folder) == rows_of(whole_folder)
    assert resumed.progress == whole.progress
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name])


def test_exact_clipping_may_change_from_one_pass_to_two_in_mid_run(make_config: Any) -> None:
    def saved(clip: str, fused: bool) -> Any:
        return make_config(training={"clip": clip}, optimizer={"fused_backward": fused}).as_dict()

    one, two, other = saved("global", False), saved("two_pass", True), saved("delayed", True)
    assert "training.clip: global -> two_pass" in require_same_recipe(one, two)
    assert "training.clip: two_pass -> global" in require_same_recipe(two, one)
    with pytest.raises(CheckpointError, match="clip: two_pass in the run, delayed now"):
        require_same_recipe(two, other)


@pytest.mark.parametrize("training", [SCHEDULE, ADAPTIVE], ids=["schedule", "adaptive"])
def test_growing_steps_see_the_stream_without_gap_or_repetition(
    make_run: Any, make_config: Any, training: Any
) -> None:
    run, seen, counts = make_run(make_config(training=training)), [], []
    for _ in range(8):
        seen += run.next_picks()
        counts.append(len(run.next_picks()))
        advance(run, ignore)
    assert seen == [run.stream.batch(number) for number in range(len(seen))]
    assert run.progress.micro_batches == len(seen) == sum(counts)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    if training is SCHEDULE:
        assert counts == [1, 1, 2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("rule", "factors"),
    [("none", [1, 1, 1]), ("sqrt", [1, 2**0.5, 2]), ("linear", [1, 2, 4])],
)
def test_the_learning_rate_follows_the_batch_as_asked(
    make_run: Any, make_config: Any, rule: str, factors: list[float]
) -> None:
    run = make_run(make_config(training=SCHEDULE | {"batch_lr": rule}))
    rates = [advance(run, ignore)["lr"] for _ in range(8)]
    assert [rates[i] / 0.05 for i in (0, 2, 5)] == pytest.approx(factors)


@pytest.mark.parametrize("schedule", [[], [[3, 2]], [[1, 3], [4, 5], [6, 6]]])
def test_steps_are_counted_as_they_are_taken(schedule: list[list[int]]) -> None:
    training = TrainingSection(epochs=1, batch_schedule=schedule)
    for micro_batches in range(1, 60):
        taken = steps = 0
        while taken < micro_batches:
            taken += scheduled_accumulation(training, steps)
            steps += 1
        assert steps_for(training, micro_batches) == steps


def test_epochs_that_end_before_a_milestone_are_refused(make_config: Any) -> None:
    def config(start: int) -> Any:
        changes = {"steps": None, "epochs": 2, "batch_schedule": [[start, 2]]}
        return make_config(training=changes)

    assert count_steps(config(3), batches_per_epoch=5) == 7
    with pytest.raises(ConfigError, match="only 10 steps"):
        count_steps(config(10), batches_per_epoch=5)


def progress_after(training: TrainingSection, exceeding: list[bool]) -> list[int]:
    """The accumulations under a noise scale that does or does not exceed the batch."""
    progress, counts = begin(training), []
    for above in exceeding:
        noise = Noise(squared_signal=1.0, trace=9.0 if above else 1.0, weight=1.0)
        progress = progress.after(training, 1.0, noise, examples=4)
        counts.append(progress.accumulation)
    return counts


def test_the_batch_doubles_only_when_the_noise_persists_and_stays_in_bounds() -> None:
    training = TrainingSection(steps=9, accumulation=2, adaptive_batch=6, adaptive_patience=3)
    assert progress_after(training, [True, True, False] * 3) == [2] * 9
    assert progress_after(training, [True] * 8) == [2, 2, 4, 4, 4, 6, 6, 6]
    assert progress_after(training, [True] * 3 + [False] * 3) == [2, 2, 4, 4, 4, 4]


def test_a_noisy_run_grows_its_batch_to_the_noise_scale_and_no_further(
    make_run: Any, make_config: Any, linear_trainee: Any
) -> None:
    """The scale is 30 * 2^2 / |TRUTH|^2 = 11.7; a step begins with 2 x 2 examples."""
    training = {"batch_size": 2, "accumulation": 2, "adaptive_batch": 64, "steps": 120}
    run = make_run(make_config(training=training), kind=linear_trainee)
    for _ in range(120):
        advance(run, ignore)
    assert 8 <= 2 * run.progress.accumulation <= 32


def test_progress_comes_back_from_json_to_the_bit() -> None:
    progress = Progress(3, 7, 21, 1 / 3, Noise(1e-17 / 3, 2 / 3, 0.1), 2)
    training = TrainingSection(steps=9, accumulation=3)
    assert saved_progress(json.loads(json.dumps(progress.as_dict())), training) == progress


@pytest.mark.parametrize(
    ("now", "next_step"),
    [
        ({"accumulation": 5}, 5),
        ({"batch_schedule": [[4, 6], [9, 12]]}, 6),
        ({"adaptive_batch": 2}, 2),
        ({"adaptive_batch": 16}, 3),
        ({"adaptive_batch": 16, "accumulation": 4}, 4),
    ],
)
def test_the_next_step_is_as_large_as_a_changed_recipe_has_it(now: Any, next_step: int) -> None:
    training = TrainingSection.model_validate({"steps": 20, **now})
    assert saved_progress(Progress(3, step=7).as_dict(), training).accumulation == next_step
