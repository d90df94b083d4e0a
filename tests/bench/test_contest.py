"""A contest: equal budgets, keys that tell runs apart, and a cache that outlives being stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acmsao_cli.bench.asked import contender_asked
from acmsao_cli.bench.contenders import CONTENDERS, Contender
from acmsao_cli.bench.contest import (
    Plan,
    best,
    finals,
    job_of,
    record,
    recorded,
    share,
    tried,
    tuning,
)
from acmsao_cli.bench.tasks import TASKS, Task


@pytest.mark.parametrize("trials", [1, 4, 5])
def test_every_contender_is_tuned_at_as_many_rates_around_its_centre(
    line: Task, trials: int
) -> None:
    plan = Plan(trials=trials)
    for one in CONTENDERS.values():
        rates = [job.attempt.lr for job in tuning(line, one, plan)]
        assert len(rates) == trials
        assert rates[trials // 2] == pytest.approx(one.centre("line"), rel=0.01)
        assert rates[-1] / rates[0] == pytest.approx(2 ** (trials - 1), rel=0.02)
        assert len(finals(line, one, plan, rates[0])) == plan.seeds


def test_the_runs_that_count_have_other_seeds_than_the_tuning(line: Task) -> None:
    one = CONTENDERS["adamw"]
    tuned = {job.attempt.seed for job in tuning(line, one, Plan())}
    counted = {job.attempt.seed for job in finals(line, one, Plan(), 1e-3)}
    assert len(tuned) == 1
    assert len(counted) == 3
    assert not tuned & counted


def test_the_rate_rises_then_falls_to_nothing(line: Task) -> None:
    attempt = job_of(line, CONTENDERS["adamw"], Plan(scale=5.0), 1.0, 0).attempt
    shares = [share(attempt, step) for step in range(100)]
    assert attempt.steps == 100
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0)
    assert shares[-1] < 1e-3


SAME = (
    "adamw",
    "{name: adamw}",
    "adamw: {lr: 3e-3}",
    "adamw: {betas: [0.9, 0.999], storage: fp32}",
    "adamw: {storage: fp32, betas: [0.9, 0.999]}",
)
OTHERS = (
    "adamw: {betas: [0.9, 0.99]}",
    "adamw: {storage: bf16}",
    "adamw: {weight_decay: 0.1}",
    "adamw: {momentum: nesterov}",
    "adamw: {direction_edits: [cautious]}",
    "adamw: {layers: [{ndim: 2, storage: bf16}]}",
    "adamw: {layers: [{ndim: 1, storage: bf16}]}",
    "adamw: {lr: 1e-3, layers: [{ndim: 1, lr: 2e-3}]}",
    "lion",
)


def test_a_key_is_what_the_optimizer_is_not_how_it_is_spelt(line: Task) -> None:
    def key(text: str) -> object:
        return job_of(line, contender_asked(text), Plan(), 1e-3, 0).attempt.key

    assert len({key(text) for text in SAME}) == 1
    assert len({key(text) for text in (SAME[0], *OTHERS)}) == 1 + len(OTHERS)


def test_a_key_is_not_of_the_name_but_of_task_rate_seed_length_and_clipping(line: Task) -> None:
    one = CONTENDERS["adamw"]
    base = job_of(line, one, Plan(), 1e-3, 0).attempt.key
    assert job_of(line, replace(one, name="other"), Plan(), 1e-3, 0).attempt.key == base
    different = (
        job_of(replace(line, digest="x"), one, Plan(), 1e-3, 0),
        job_of(line, one, Plan(), 2e-3, 0),
        job_of(line, one, Plan(), 1e-3, 1),
        job_of(line, one, Plan(scale=2), 1e-3, 0),
        job_of(line, one, Plan(clip=None), 1e-3, 0),
    )
    assert len({base, *(job.attempt.key for job in different)}) == 6


def test_a_run_is_the_same_each_time_and_says_what_it_cost(line: Task) -> None:
    job = job_of(line, CONTENDERS["adamw"], Plan(), 0.1, 0)
    first, second = tried(job), tried(job)
    assert first["curve"] == second["curve"]
    assert [step for step, _ in first["curve"]] == [0, *range(2, 21, 2)]
    assert first["final"] == first["curve"][-1][1] < first["curve"][0][1]
    assert first["state_bytes"] == 8 * first["parameters"] == 24


def test_gradients_are_clipped_for_all_alike(line: Task) -> None:
    def moved(clip: float | None) -> float:
        row = tried(job_of(line, contender_asked("sgd"), Plan(clip=clip), 1e-3, 0))
        return abs(row["final"] - row["curve"][0][1])

    assert moved(1e-3) < 0.01 * moved(None)
    assert moved(1e6) == moved(None)


def test_a_run_that_diverges_has_no_final_loss(line: Task) -> None:
    row = tried(job_of(line, contender_asked("sgd"), Plan(scale=20, clip=None), 1e6, 0))
    assert row["final"] is None
    assert "error" not in row
    assert best([row]) is None


def test_what_breaks_is_told_and_does_not_end_the_contest(broken: Task) -> None:
    row = tried(job_of(broken, CONTENDERS["adamw"], Plan(), 1.0, 0))
    assert row["final"] is None
    assert row["error"] == "ArithmeticError: no such root"


def test_a_line_that_was_cut_short_is_lost_alone(tmp_path: Path, line: Task) -> None:
    cache = tmp_path / "folder" / "runs.jsonl"
    jobs = tuning(line, CONTENDERS["adamw"], Plan(trials=2))
    first, second = (tried(job) for job in jobs)
    record(cache, first)
    with cache.open("a") as file:
        file.write(json.dumps(second)[:40])  # stopped here
    assert list(recorded(cache)) == [jobs[0].attempt.key]
    record(cache, second)
    assert [row["final"] for row in recorded(cache).values()] == [first["final"], second["final"]]


@pytest.mark.parametrize("name", ["pictures", "bytes", "bytes-batch-2", "lora", "text"])
@pytest.mark.filterwarnings("ignore")
def test_built_in_tasks_learn_and_repeat(name: str) -> None:
    torch.set_num_threads(1)
    losses = []
    for _ in range(2):
        opened = TASKS[name].open(3)
        optimizer = CONTENDERS["adamw"].optimizer(opened.parameters, 3e-3, 3, 4)
        before = opened.validation_loss()
        for _ in range(4):
            opened.training_loss().backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(opened.validation_loss())
        assert losses[-1] < before
    assert losses[0] == losses[1]


def test_layers_keep_their_proportion_and_what_fits_nothing_is_left_out(line: Task) -> None:
    says = {"name": "adamw", "layers": [{"match": "*nowhere*"}, {"ndim": 1, "lr": 3.0}]}
    one = Contender("layered", says, {"": 1e-3})
    optimizer = one.optimizer(line.open(0).parameters, 0.1, 0, 10)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.1, 0.3])
