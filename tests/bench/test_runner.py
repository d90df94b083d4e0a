"""Runs are made once, in this process or in others, and go on after whatever stopped them."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from acmsao_cli.bench.compare import stages
from acmsao_cli.bench.contenders import CONTENDERS
from acmsao_cli.bench.contest import Plan, recorded, tuning
from acmsao_cli.bench.runner import Progress, Stage, perform
from acmsao_cli.bench.tasks import TASKS, Task
from acmsao_cli.errors import WorkerError

TWO = [CONTENDERS["adamw"], CONTENDERS["lion"]]
PLAN = Plan(trials=2, seeds=2)


class Stopped(BaseException):
    """As a signal would."""


def test_every_run_is_made_once_and_counted(tmp_path: Path, line: Task) -> None:
    cache, seen = tmp_path / "runs.jsonl", []
    for _ in range(2):
        perform(stages([line], TWO, PLAN), cache, 1, seen.append)
    assert len(cache.read_text().splitlines()) == 2 * (2 + 2)
    assert [progress.done for progress in seen] == list(range(1, 9))
    assert {progress.total for progress in seen} == {8}


def test_what_was_stopped_goes_on_where_it_was(tmp_path: Path, line: Task) -> None:
    def stop_at_third(progress: Progress) -> None:
        if progress.done == 3:
            raise Stopped

    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    perform(stages([line], TWO, PLAN), whole, 1, lambda progress: None)
    with pytest.raises(Stopped):
        perform(stages([line], TWO, PLAN), parts, 1, stop_at_third)
    assert len(recorded(parts)) == 3
    perform(stages([line], TWO, PLAN), parts, 1, lambda progress: None)
    finals = [
        {key: row["final"] for key, row in recorded(cache).items()} for cache in (whole, parts)
    ]
    assert finals[0] == finals[1]


def test_a_run_that_broke_is_made_again_by_the_next_command(tmp_path: Path, broken: Task) -> None:
    cache = tmp_path / "runs.jsonl"
    for times in (1, 2):
        perform(stages([broken], TWO[:1], PLAN), cache, 1, lambda progress: None)
        assert len(cache.read_text().splitlines()) == 2 * times


def test_one_run_for_contenders_that_are_the_same(tmp_path: Path, line: Task) -> None:
    same = [TWO[0], replace(TWO[0], name="its other name")]
    perform(stages([line], same, PLAN), tmp_path / "runs.jsonl", 1, lambda progress: None)
    assert len(recorded(tmp_path / "runs.jsonl")) == 4


def test_other_processes_reach_the_same_losses(tmp_path: Path) -> None:
    task = replace(TASKS["bytes-batch-2"], steps=10)
    plan, found = Plan(trials=1, seeds=1), []
    for processes in (1, 2):
        cache = tmp_path / f"{processes}.jsonl"
        perform(stages([task], TWO[:1], plan), cache, processes, lambda progress: None)
        found.append({key: row["final"] for key, row in recorded(cache).items()})
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_process_that_dies_is_told_with_what_to_do(tmp_path: Path, line: Task) -> None:
    deadly = replace(line, open=partial(os._exit))
    stage = Stage(tuning(deadly, TWO[0], PLAN))
    with pytest.raises(WorkerError) as error:
        perform([stage], tmp_path / "runs.jsonl", 2, lambda progress: None)
    assert "the same command goes on" in str(error.value.hint)
