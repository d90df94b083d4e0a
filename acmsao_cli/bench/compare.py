"""A comparison: each contender tuned alike on each task, then run with other seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from acmsao_cli.bench.contenders import Contender
from acmsao_cli.bench.contest import (
    Job,
    Known,
    Plan,
    Row,
    best,
    finals,
    found,
    outcome,
    tuning,
)
from acmsao_cli.bench.runner import Stage
from acmsao_cli.bench.summary import figures
from acmsao_cli.bench.tasks import Task
from acmsao_cli.errors import OptimizerError


def buildable(contenders: Iterable[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those that there are here; of the others the reason why not."""
    there, absent = [], {}
    for one in contenders:
        try:
            one.text  # noqa: B018  # composed once, and kept
        except OptimizerError as error:
            absent[one.name] = error.message
        else:
            there.append(one)
    return there, absent


def stages(tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan) -> list[Stage]:
    """Contender by contender, each on every task."""
    return [stage(task, contender, plan) for contender in contenders for task in tasks]


def stage(task: Task, contender: Contender, plan: Plan) -> Stage:
    """One contender on one task: the tuning, then the best rate's other seeds."""

    def follow(rows: list[Row]) -> Sequence[Job]:
        chosen = best(rows)
        return finals(task, contender, plan, chosen["lr"]) if chosen else ()

    return Stage(tuning(task, contender, plan), follow, plan.seeds)


def on_task(
    task: Task, contenders: Sequence[Contender], plan: Plan, known: Known, reference: str
) -> dict[str, Any]:
    """What is known of a task: figures, failures, and who is not through."""
    runs = {}
    for one in contenders:
        tried = found(tuning(task, one, plan), known)
        chosen = best(tried) if len(tried) == plan.trials else None
        last = found(finals(task, one, plan, chosen["lr"]), known) if chosen else []
        runs[one.name] = (tried, last, chosen)
    against = runs[reference][1] if reference in runs else []
    told: dict[str, Any] = {**about(task, plan), "figures": {}, "failed": {}, "unfinished": {}}
    for name, (tried, last, chosen) in runs.items():
        done, wanted = len(tried) + len(last), plan.trials + plan.seeds
        if len(tried) < plan.trials or (chosen and len(last) < plan.seeds):
            told["unfinished"][name] = f"{done} of {wanted} runs"
        elif of_it := figures(last, tried, against if len(against) == plan.seeds else []):
            told["figures"][name] = asdict(of_it)
        else:
            told["failed"][name] = outcome([*last, *tried][0])
    return told


def about(task: Task, plan: Plan) -> dict[str, Any]:
    """What a task is."""
    return {
        "about": task.about,
        "unit": task.unit,
        "steps": plan.steps(task),
        "identity": task.identity,
    }


def compared(
    tasks: Sequence[Task],
    contenders: Sequence[Contender],
    plan: Plan,
    known: Known,
    reference: str,
) -> dict[str, Any]:
    """All that is known of a comparison, for JSON."""
    here = {job.attempt.key for job in every_job(tasks, contenders, plan, known)}
    return {
        "plan": asdict(plan),
        "reference": reference,
        "tasks": {t.name: on_task(t, contenders, plan, known, reference) for t in tasks},
        "runs": [told(known[key]) for key in known if key in here],
    }


def every_job(
    tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan, known: Known
) -> Iterable[Job]:
    """The runs of a comparison that are known by name now."""
    for each in stages(tasks, contenders, plan):
        yield from each.jobs
        tried = found(each.jobs, known)
        yield from each.follow(tried) if len(tried) == len(each.jobs) else ()


def told(row: Row) -> dict[str, Any]:
    """A run in a few words."""
    keys = ("task", "contender", "lr", "seed", "steps", "final", "seconds", "error")
    return {key: row[key] for key in keys if key in row}
