"""An optimizer taken apart: each of its parts changed alone, at the whole one's learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias

from acmsao_cli.bench.compare import about, told
from acmsao_cli.bench.contenders import Contender
from acmsao_cli.bench.contest import (
    Job,
    Key,
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
from acmsao_cli.bench.sensitivity import Grid
from acmsao_cli.bench.summary import Figures, figures
from acmsao_cli.bench.tasks import Task
from acmsao_cli.errors import ConfigError

Changes: TypeAlias = Mapping[str, Any]  # of a section's keys; None takes one away

# By rule, what is changed: a row's name and the keys of `optimizer:` that differ from the base's.
ABLATIONS: Final[Mapping[str, Mapping[str, Changes]]] = {
    "acmsao": {
        "without memory": {"alpha": 0.0},
        "without attention": {"attention": "none"},
        "without Nesterov": {"nesterov": False},
        "without admission": {"admission": "always"},
        "without cycle": {"cycle": 0.0},
        "memory alone": {
            "attention": "none",
            "nesterov": False,
            "admission": "always",
            "cycle": 0.0,
        },
        "weight constant from the start": {"ramp": 2.0},
        "horizon of 10 visits from the start": {"growth": 10.0},
        "one scale, every step": {"scales": [1]},
        "one scale, every 16 steps": {"scales": [16]},
        "scales from the noise": {"scales": "auto"},
        "coarse scales count more": {"alpha": [1.0, 2.0, 3.0]},
        "banks shown the gradient": {"visits": "gradient"},
        "banks of single entries": {"bank": "ring"},
        "admission of large gradients, as the document": {"admission": "magnitude"},
        "admission by importance": {"admission": "importance"},
        "attention by element and scale": {"attention": "element_per_scale"},
        "attention by tensor": {"attention": "tensor"},
        "attention by scale": {"attention": "scale"},
        "attention by softmax over scales": {"attention": "softmax"},
        "the paper's cautious mask": {"attention": "none", "direction_edits": ["cautious"]},
        "sums of this step": {"lagged": False},
        "cycle as long as the schedule": {"cycle_period": "schedule"},
        "growth by the learning rate": {"pace": "learning_rate"},
        "around adopt": {"inner": "adopt"},
        "state in 4 bits": {"storage": "factored_4bit"},
        "the document's form": {"name": "acmsao_document"},
    },
    "adamw": {
        "without momentum": {"betas": [0.0, 0.999]},
        "without correction": {"correction": "none"},
        "with Nesterov": {"momentum": "nesterov"},
        "with the cautious mask": {"direction_edits": ["cautious"]},
        "with amsgrad": {"amsgrad": True},
        "state in 4 bits": {"storage": "factored_4bit"},
    },
}
BASE: Final = "as it is"


def changed(base: Contender, name: str, changes: Changes) -> Contender:
    """The base with some of its keys another way."""
    says = {key: value for key, value in {**base.says, **changes}.items() if value is not None}
    return Contender(name, says, base.centres)


def variations(base: Contender) -> list[Contender]:
    """The rows of the base's rule. Raises ConfigError where none are known of it."""
    rule = base.says["name"]
    if rule not in ABLATIONS:
        raise ConfigError(
            f"it is not known what to take away from `{rule}`",
            hint=f"it is of {', '.join(ABLATIONS)}; --sensitivity takes any rule",
        )
    return [changed(base, name, changes) for name, changes in ABLATIONS[rule].items()]


@dataclass(frozen=True)
class Study:
    """What is asked of one optimizer: rows, grids, and the rate if it is given."""

    base: Contender
    rows: Sequence[Contender]
    grids: Sequence[Grid]
    plan: Plan
    grid_seeds: int = 1
    lr: float | None = None

    @property
    def runs(self) -> int:
        """At the chosen rate, on one task."""
        points = sum(len(grid.points) for grid in self.grids)
        return self.plan.seeds * (1 + len(self.rows)) + self.grid_seeds * points

    def stages(self, tasks: Sequence[Task]) -> list[Stage]:
        """Task by task: the base's tuning unless the rate is given, then everything at that."""
        return [self._stage(task) for task in tasks]

    def _stage(self, task: Task) -> Stage:
        if self.lr is not None:
            return Stage(list(self.jobs(task, self.lr)))

        def follow(rows: list[Row]) -> Sequence[Job]:
            chosen = best(rows)
            return list(self.jobs(task, chosen["lr"])) if chosen else ()

        return Stage(tuning(task, self.base, self.plan), follow, self.runs)

    def jobs(self, task: Task, lr: float) -> Iterator[Job]:
        """Everything at one rate."""
        for one in (self.base, *self.rows):
            yield from finals(task, one, self.plan, lr)
        for grid in self.grids:
            for point in grid.points:
                yield from self.at_point(task, point.contender, lr * point.rate)

    def at_point(self, task: Task, contender: Contender, lr: float) -> list[Job]:
        """The runs of a grid's point."""
        rate = float(f"{lr:.3g}")
        return finals(task, contender, replace(self.plan, seeds=self.grid_seeds), rate)

    def rate(self, task: Task, known: Known) -> float | None:
        """The rate on a task, if it is known yet."""
        if self.lr is not None:
            return self.lr
        tried = found(tuning(task, self.base, self.plan), known)
        chosen = best(tried) if len(tried) == self.plan.trials else None
        return chosen["lr"] if chosen else None

    def result(self, tasks: Sequence[Task], known: Known) -> dict[str, Any]:
        """All that is known, for JSON."""
        return {
            "plan": asdict(self.plan) | {"grid_seeds": self.grid_seeds, "lr": self.lr},
            "optimizer": {"name": self.base.name, "text": self.base.text},
            "reference": BASE,
            "tasks": {task.name: self._on_task(task, known) for task in tasks},
            "runs": [told(known[key]) for key in self._keys(tasks, known) if key in known],
        }

    def _keys(self, tasks: Sequence[Task], known: Known) -> dict[Key, None]:
        """The keys of the runs that there are by now, each once."""
        keys: dict[Key, None] = {}
        for task in tasks:
            rate = self.rate(task, known)
            first = [] if self.lr is not None else tuning(task, self.base, self.plan)
            then = [] if rate is None else self.jobs(task, rate)
            keys |= {job.attempt.key: None for job in (*first, *then)}
        return keys

    def _on_task(self, task: Task, known: Known) -> dict[str, Any]:
        lr = self.rate(task, known)
        result: dict[str, Any] = {**about(task, self.plan), "lr": lr}
        result |= {"figures": {}, "failed": {}, "unfinished": {}, "sensitivity": {}}
        if lr is None:
            result["unfinished"][BASE] = "its learning rate is not tuned yet"
            return result
        tried = [] if self.lr is not None else found(tuning(task, self.base, self.plan), known)
        base = found(finals(task, self.base, self.plan, lr), known)
        for name, one in ((BASE, self.base), *((row.name, row) for row in self.rows)):
            rows = found(finals(task, one, self.plan, lr), known)
            if len(rows) < self.plan.seeds or len(base) < self.plan.seeds:
                result["unfinished"][name] = f"{len(rows)} of {self.plan.seeds} runs"
            elif of_it := figures(rows, tried if name == BASE else [], base):
                result["figures"][name] = asdict(of_it)
            else:
                result["failed"][name] = outcome(rows[0])
        result["sensitivity"] = {
            grid.option: self._along(grid, task, lr, known) for grid in self.grids
        }
        return result

    def _along(self, grid: Grid, task: Task, lr: float, known: Known) -> list[dict[str, Any]]:
        """The points of a grid with what was reached at each."""
        points = []
        for point in grid.points:
            rows = found(self.at_point(task, point.contender, lr * point.rate), known)
            of_it: Figures | None = figures(rows, [], [])
            points.append(
                {
                    "value": point.value,
                    "is_base": point.is_base,
                    "mean": of_it.mean if of_it else None,
                    "deviation": of_it.deviation if of_it else None,
                    "runs": len(rows),
                    "failed": [outcome(row) for row in rows if row["final"] is None],
                }
            )
        return points
