"""What a comparison consists of."""

from __future__ import annotations

from collections.abc import Sequence

from acmsao_cli.bench.contenders import Contender
from acmsao_cli.bench.contest import Job, Plan, Row, best, finals, tuning
from acmsao_cli.bench.runner import Stage
from acmsao_cli.bench.task import Task


def stages(tasks: Sequence[Task], contenders: Sequence[Contender], plan: Plan) -> list[Stage]:
    """Contender by contender, each on every task: the tuning, then the best rate's other seeds."""
    return [stage(task, contender, plan) for contender in contenders for task in tasks]


def stage(task: Task, contender: Contender, plan: Plan) -> Stage:
    """One contender on one task."""

    def follow(rows: list[Row]) -> Sequence[Job]:
        chosen = best(rows)
        return finals(task, contender, plan, chosen["lr"]) if chosen else ()

    return Stage(tuning(task, contender, plan), follow, plan.seeds)
