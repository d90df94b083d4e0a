"""The contest: equal tuning for each contender on each task, every run kept as one line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from acmsao_cli.bench.contenders import Contender
from acmsao_cli.bench.tasks import Task
from acmsao_cli.writing import writing

EVALUATIONS: Final = 10
WARMUP: Final = 0.1  # of the run; then a cosine down to zero
TUNING_SEED: Final = 0

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]
Known: TypeAlias = Mapping[Key, Row]


@dataclass(frozen=True)
class Plan:
    """How much is spent on each contender, the same for all."""

    trials: int = 5  # learning rates
    seeds: int = 3
    scale: float = 1.0  # of the tasks' steps
    factor: float = 2.0  # between neighbouring rates
    clip: float | None = 1.0  # bound of the gradients' global norm

    def rates(self, centre: float) -> list[float]:
        """The grid: `trials` rates, `centre` in the middle (of an even number, the upper one)."""
        powers = range(-(self.trials // 2), self.trials - self.trials // 2)
        return [float(f"{centre * self.factor**power:.3g}") for power in powers]

    def steps(self, task: Task) -> int:
        """Steps of one run."""
        return max(EVALUATIONS, round(task.steps * self.scale))


@dataclass(frozen=True)
class Attempt:
    """One run: everything its outcome depends on."""

    task: str  # its identity
    text: str  # the contender's
    lr: float
    seed: int
    steps: int
    clip: float | None

    @property
    def key(self) -> Key:
        """What two equal runs share."""
        return tuple(asdict(self).values())

    @staticmethod
    def of(row: Mapping[str, Any]) -> Attempt:
        """The attempt that a row tells of."""
        return Attempt(**{field.name: row[field.name] for field in fields(Attempt)})


@dataclass(frozen=True)
class Job:
    """An attempt with what it is made of; it travels to other processes."""

    task: Task
    contender: Contender
    attempt: Attempt


def share(attempt: Attempt, step: int) -> float:
    """Of the peak rate, at a step counted from 0: a linear rise, then a cosine to zero."""
    rise = max(1, round(attempt.steps * WARMUP))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (attempt.steps - rise)))


def run(job: Job) -> Row:
    """Train once. A run whose loss is no number stops there and has no final loss."""
    attempt = job.attempt
    opened = job.task.open(attempt.seed)
    weights = [parameter for _, parameter in opened.parameters]
    optimizer = job.contender.optimizer(opened.parameters, attempt.lr, attempt.seed, attempt.steps)
    peaks = [group["lr"] for group in optimizer.param_groups]
    looks = {round(attempt.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    curve = [(0, opened.validation_loss())]
    seconds = 0.0
    for step in range(attempt.steps):
        begun = time.process_time()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share(attempt, step)
        opened.training_loss().backward()
        if attempt.clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, attempt.clip)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - begun
        if step + 1 in looks:
            curve.append((step + 1, opened.validation_loss()))
            if not math.isfinite(curve[-1][1]):
                break
    finite = math.isfinite(curve[-1][1])
    return {
        **named(job),
        "final": curve[-1][1] if finite else None,
        "curve": curve if finite else curve[:-1],
        "seconds": round(seconds, 3),
        "parameters": sum(weight.numel() for weight in weights),
        "state_bytes": optimizer.state_bytes(),
    }


def named(job: Job) -> Row:
    """The attempt, and what the contender is called today."""
    return {**asdict(job.attempt), "contender": job.contender.name}


def tried(job: Job) -> Row:
    """The run on one thread, or what broke it: one contender's fault must not end the contest."""
    torch.set_num_threads(1)
    try:
        return run(job)
    except Exception as error:
        return {
            **named(job),
            "final": None,
            "curve": [],
            "error": f"{type(error).__name__}: {error}",
        }


def outcome(row: Row) -> str:
    """The final loss in words, or why there is none."""
    return row.get("error", "diverged") if row["final"] is None else f"{row['final']:.4f}"


# The cache


def recorded(cache: Path) -> dict[Key, Row]:
    """Runs by key, the later line of two; one that was cut short is as if it were not there."""
    found = {}
    for line in cache.read_text(encoding="utf-8").splitlines() if cache.exists() else ():
        try:
            row = json.loads(line)
            found[Attempt.of(row).key] = row
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found


def record(cache: Path, row: Row) -> None:
    """Add a line; what a stopped writer left half done stays a line of its own."""
    with writing(cache):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a+b") as file:
            whole = file.tell() == 0 or cache.read_bytes().endswith(b"\n")
            file.write((b"" if whole else b"\n") + json.dumps(row).encode() + b"\n")


# Which runs there are to make


def tuning(task: Task, contender: Contender, plan: Plan) -> list[Job]:
    """The runs that find the rate."""
    rates = plan.rates(contender.centre(task.name))
    return [job_of(task, contender, plan, lr, TUNING_SEED) for lr in rates]


def finals(task: Task, contender: Contender, plan: Plan, lr: float) -> list[Job]:
    """The runs that count, of other seeds than the tuning's."""
    seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + plan.seeds)
    return [job_of(task, contender, plan, lr, seed) for seed in seeds]


def job_of(task: Task, contender: Contender, plan: Plan, lr: float, seed: int) -> Job:
    """One run of the plan."""
    steps = plan.steps(task)
    attempt = Attempt(task.identity, contender.text, lr, seed, steps, plan.clip)
    return Job(task, contender, attempt)


def best(rows: Sequence[Row]) -> Row | None:
    """The run with the lowest final loss; None if all diverged."""
    finished = [row for row in rows if row["final"] is not None]
    return min(finished, key=lambda row: row["final"], default=None)


def found(jobs: Sequence[Job], known: Known) -> list[Row]:
    """What is known of these runs."""
    return [known[job.attempt.key] for job in jobs if job.attempt.key in known]
