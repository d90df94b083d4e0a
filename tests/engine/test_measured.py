"""Laws of the plan held against the steps: what is measured, told, stored, and warned of."""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.engine import measured
from acmsao_cli.engine import watch as watch_module
from acmsao_cli.engine.assemble import restore
from acmsao_cli.engine.events import Event, MemoryMeasured, Notice, StepDone
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.loop import train
from acmsao_cli.engine.measured import (
    Expectation,
    forget_peak,
    is_largest,
    peak_memory,
    resident_bytes,
    spilled,
    warning,
)
from acmsao_cli.engine.report import read_metrics
from acmsao_cli.engine.signals import Stop
from acmsao_cli.errors import StoppedError
from acmsao_cli.models.base import Batch

CPU = torch.device("cpu")
SIZE = 96 * 2**20
GB = 10**9


def comparisons(events: list[Event]) -> list[MemoryMeasured]:
    return [event for event in events if isinstance(event, MemoryMeasured)]


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def found(error: float, **changes: Any) -> MemoryMeasured:
    """A comparison of a GPU's usual step, off by `error`."""
    usual = MemoryMeasured(2, GB, round(GB * (1 + error)), None, error, True, True)
    return dataclasses.replace(usual, **changes)


def test_a_tensor_that_lived_between_reset_and_reading_shows_and_an_earlier_one_does_not() -> None:
    torch.ones(SIZE, dtype=torch.uint8)
    if not forget_peak(CPU):
        pytest.skip("this system does not reset the peak")
    before = resident_bytes()
    assert peak_memory(CPU) - before < SIZE / 2
    torch.ones(SIZE, dtype=torch.uint8)
    assert peak_memory(CPU) - before == pytest.approx(SIZE, rel=0.1)


GIVING_BACK = """
import torch
from acmsao_cli.engine import malloc, measured

torch.set_num_threads(1)
malloc.give_back_at_once()
before, pin = measured.resident_bytes(), []
for _ in range(12):
    tensor = torch.ones(16 * 2**20, dtype=torch.uint8)
    pin.append(torch.ones(1000))
    del tensor
print(measured._status("VmRSS") - before)
"""


def test_freed_tensors_are_given_back_while_the_steps_are_measured() -> None:
    """By itself glibc keeps what is freed below its threshold, which grows to 32 MiB.

    In a process of its own: what others left behind in the heap is not the point.
    """
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    done = subprocess.run(
        [sys.executable, "-c", GIVING_BACK], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 * 2**20


def test_without_a_proc_file_system_the_process_is_still_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measured, "STATUS", tmp_path / "none" / "status")
    monkeypatch.setattr(measured, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assert not forget_peak(CPU)
    assert peak_memory(CPU) >= resident_bytes() > 2**20


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (found(0.0), None),
        (found(0.1), None),
        (found(-0.1), None),
        (
            found(0.11),
            "the steps hold 1.03 GiB, 954 MiB were predicted (+11 %): the plan is too low",
        ),
        (found(0.11, batch_is_largest=False), "too low"),
        (found(0.11, step=1), "too low"),
        (found(-0.11), "too high"),
        (found(-0.11, batch_is_largest=False), None),
        (found(-0.11, step=1), None),
        (found(3.0, comparable=False), None),
    ],
)
def test_more_than_planned_is_always_warned_of_and_less_only_of_a_batch_as_planned(
    one: MemoryMeasured, words: str | None
) -> None:
    text = warning(one)
    assert text is None if words is None else text is not None and words in text


def test_a_step_is_as_large_as_planned_in_every_input_and_in_its_portions() -> None:
    def batch(rows: int, width: int, **more: torch.Tensor) -> Batch:
        return Batch(1.0, {"ids": torch.zeros(rows, width), "kept": torch.zeros(width)} | more)

    fixed, grows = TrainingSection(steps=9), TrainingSection(steps=9, batch_schedule=[(2, 2)])
    planned = batch(2, 5)
    assert is_largest([batch(2, 5)], planned, fixed)
    assert is_largest([batch(2, 4), batch(2, 5)], planned, fixed)
    assert not is_largest([batch(3, 4, mask=torch.zeros(99))], planned, fixed)
    assert not is_largest([batch(2, 5)], planned, grows)
    assert is_largest([batch(2, 5)] * 2, planned, grows)


def test_the_second_step_is_compared_once_told_and_stored(tmp_path: Path, make_run: Any) -> None:
    folder, events = RunFolder(tmp_path), list[Event]()
    expectation = Expectation(GB)
    summary = train(make_run(), folder, Stop(), events.append, expectation)
    (one,) = comparisons(events)
    assert (one.step, one.predicted_bytes, one.reserved_bytes) == (2, GB, None)
    rows = read_metrics(folder.metrics)
    held = rows[1]["memory_bytes"] - expectation.resident_before
    assert one.measured_bytes == max(0, held)
    assert one.error == pytest.approx(one.measured_bytes / GB - 1, abs=1e-4)
    assert one.batch_is_largest
    where = events.index(one)
    assert isinstance(events[where - 1], StepDone)
    assert [row["step"] for row in rows if "memory" in row] == [2]
    assert rows[1]["memory"] == summary["memory"] == dataclasses.asdict(one)


def test_a_plan_far_off_is_warned_of_right_behind_the_numbers(
    tmp_path: Path, make_run: Any
) -> None:
    events = list[Event]()
    train(make_run(), RunFolder(tmp_path), Stop(), events.append, Expectation(GB))
    (one,) = comparisons(events)
    assert one.comparable
    assert notices(events) == [warning(one)]
    assert "too high" in notices(events)[0]


def test_a_plan_too_small_to_compare_is_told_without_warning(tmp_path: Path, make_run: Any) -> None:
    events = list[Event]()
    train(make_run(), RunFolder(tmp_path), Stop(), events.append, Expectation(1))
    assert [one.comparable for one in comparisons(events)] == [False]
    assert notices(events) == []


def test_a_peak_that_cannot_be_reset_is_not_held_against_the_plan(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    events = list[Event]()
    train(make_run(), RunFolder(tmp_path), Stop(), events.append, Expectation(GB))
    assert [one.comparable for one in comparisons(events)] == [False]


def test_a_resumed_run_compares_again_and_its_summary_has_the_later(
    tmp_path: Path, make_run: Any, newest: Any
) -> None:
    folder, stop, events = RunFolder(tmp_path), Stop(), list[Event]()

    def stop_there(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 5:
            stop.number = signal.SIGTERM

    with pytest.raises(StoppedError):
        train(make_run(), folder, stop, stop_there, Expectation(GB))
    resumed = make_run()
    restore(resumed, newest(folder), events.append)
    summary = train(resumed, folder, Stop(), events.append, Expectation(GB))
    assert [one.step for one in comparisons(events)] == [2, 7]
    assert summary["memory"]["step"] == 7


@pytest.mark.parametrize("length", [1, 2])
def test_a_run_of_one_step_is_compared_after_it(
    tmp_path: Path, make_run: Any, make_config: Any, length: int
) -> None:
    events = list[Event]()
    run = make_run(make_config(training={"steps": length}))
    train(run, RunFolder(tmp_path), Stop(), events.append, Expectation(GB))
    assert [one.step for one in comparisons(events)] == [length]


def test_without_a_plan_there_is_nothing_to_compare_but_memory_is_recorded(
    tmp_path: Path, make_run: Any
) -> None:
    folder, events = RunFolder(tmp_path), list[Event]()
    summary = train(make_run(), folder, Stop(), events.append)
    assert comparisons(events) == []
    assert summary["memory"] is None
    assert all(row["memory_bytes"] > 0 for row in read_metrics(folder.metrics))


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [
        ([1.0] * 5 + [6.0] * 3, 0.95, True),
        ([60.0, 1.0, 1.0, 6.0, 6.0, 6.0], 0.95, True),  # the first step warms up
        ([1.0] * 10 + [6.0] * 40, 0.95, True),
        ([1.0] * 5 + [6.0] * 3, 0.85, False),  # there is room: something else is slow
        ([1.0] * 5 + [6.0, 1.0, 6.0], 0.95, False),
        ([1.0] * 5 + [5.0] * 3, 0.95, False),
        ([1.0] * 2 + [6.0] * 3, 0.95, False),  # too few to say what is usual
        ([], 1.0, False),
    ],
)
def test_spilling_is_three_slow_steps_in_a_row_on_a_full_card(
    seconds: list[float], share: float, expected: bool
) -> None:
    assert spilled(seconds, share) is expected


@pytest.mark.parametrize(
    ("share", "portions", "told"),
    [(0.97, 1, 1), (0.97, 8, 0), (0.0, 1, 0)],
    ids=["full", "more-portions", "room"],
)
def test_spilling_is_told_once_and_never_of_steps_of_more_portions(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, share: float, portions: int, told: int
) -> None:
    assert measured.share_in_use(CPU) == 0.0
    monkeypatch.setattr(watch_module, "share_in_use", lambda device: share)
    events = list[Event]()
    watch = watch_module.Watch(make_run(), None, events.append)
    for seconds, accumulation in [(1.0, 1)] * 4 + [(8.0, portions)] * 6:
        watch.after(StepDone(3, 99, 0.0, 0.0, None, 1.0, seconds, 1, accumulation), [])
    assert len(events) == told
    assert all("training.batch_size" in text for text in notices(events))
