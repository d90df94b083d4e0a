"""Many optimizers on three small real tasks, each with the same tuning budget.

python benchmarks/convergence.py [--tasks NAME ...] [--only TEXT ...] [--cache FILE] [--report]

`acmsao compare` with wide grids, short runs and unclipped gradients: for each task and optimizer a
grid of learning rates around the optimizer's own centre is tried with one seed; the best is run
with the other seeds. Every run is one line of the cache, so a stopped comparison goes on where it
was, and `--report` writes table and plot from what is there.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import recording

from acmsao_cli.bench import report
from acmsao_cli.bench.compare import buildable, compared, stages
from acmsao_cli.bench.contenders import ANY, BASELINE, EDGES, MUON, SLOW, Contender, contender
from acmsao_cli.bench.contest import Plan, outcome, recorded
from acmsao_cli.bench.runner import Progress, perform
from acmsao_cli.bench.tasks import TASKS as ALL_TASKS

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(tempfile.gettempdir()) / "convergence" / "runs.jsonl"
PLAN = Plan(trials=5, seeds=3, factor=math.sqrt(10), clip=None)
STEPS = {"pictures": 150, "text": 260, "lora": 60}
TASKS = {name: replace(ALL_TASKS[name], steps=steps) for name, steps in STEPS.items()}
WHAT = "Final validation loss of optimizers, each tuned alike"

SUM = {"name": "accumulator", "alpha": 100.0}
GROWING = {"name": "geometric", "start": 1e-8, "stop": 1e-3, "steps": 150}
UNDER_PRODIGY = {
    "name": "adamw",
    "momentum": {"name": "accumulator", "alpha": 10.0},
    "correction": "none",
}


def around(centre: float, name: str, rule: str = "", **says: Any) -> Contender:
    """One whose rates are looked for around the same centre on every task."""
    return contender(name, rule, {ANY: centre}, **says)


def adamw(name: str, **says: Any) -> Contender:
    """A change of AdamW, tuned around the same centre."""
    return around(3e-3, name, "adamw", **says)


CONTENDERS: Mapping[str, Contender] = {
    one.name: one
    for one in (
        adamw("adamw"),
        adamw("adamw nesterov", momentum="nesterov"),
        around(2e-3, "ademamix", "adamw", momentum=SLOW),
        around(3e-3, "adopt"),
        around(3e-3, "adopt atan2", "adopt", ratio="atan2"),
        around(1e-3, "lion"),
        adamw("adamw factored", storage="factored"),
        adamw("adamw bf16", storage="bf16"),
        adamw("adamw cautious", direction_edits=["cautious"]),
        adamw("adamw grams", direction_edits=["grams"]),
        around(3e-5, "simplified_ademamix", momentum=SUM),
        around(3e-3, "nested_adam"),
        around(3e-3, "adafactor"),
        around(0.1, "sgd momentum", "sgd"),
        around(1.0, "a2grad uni", "a2grad", variant="uni"),
        around(1.0, "a2grad inc", "a2grad", variant="inc"),
        around(1.0, "a2grad exp", "a2grad", variant="exp"),
        around(1.0, "prodigy"),
        around(0.1, "prodigy accumulator", "prodigy", inner=UNDER_PRODIGY),
        adamw("muon + adamw", layers=[*EDGES, MUON]),
        around(3e-3, "soap"),
        around(3e-3, "adadiag", every=20),
        adamw("adamw factored_4bit", storage="factored_4bit"),
        adamw("adamw factored_2bit", storage="factored_2bit"),
        adamw("adamw factored_8bit", storage="factored_8bit"),
        adamw("adamw int8", storage="int8"),
        around(1e-3, "lion factored", "lion", storage="factored"),
        adamw("adamw atan2", ratio="atan2"),
        adamw("adamw orthograd", gradient_edits=["orthograd"]),
        adamw("adamw growing eps", eps=GROWING),
        around(3e-3, "warm_start", steps=10, scale=30.0),
    )
}


def chosen_contenders(wanted: Sequence[str]) -> list[Contender]:
    """Contenders whose name has one of the texts; the baseline always."""
    return [
        one
        for name, one in CONTENDERS.items()
        if name == BASELINE or not wanted or any(text in name for text in wanted)
    ]


def show(progress: Progress) -> None:
    """A line for a run that ended."""
    row = progress.row
    name = f"{progress.task:9} {row['contender']:22}"
    print(f"{name} lr {row['lr']:<9g} seed {row['seed']}: {outcome(row)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", default=[], help="parts of optimizers' names")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--trials", type=int, default=PLAN.trials)
    parser.add_argument("--seeds", type=int, default=PLAN.seeds)
    parser.add_argument("--scale", type=float, default=PLAN.scale, help="of the tasks' steps")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--out", type=Path, default=recording.RESULTS / "convergence")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "convergence.png")
    options = parser.parse_args(arguments)
    tasks = [TASKS[name] for name in options.tasks]
    there, absent = buildable(chosen_contenders(options.only))
    plan = replace(PLAN, trials=options.trials, seeds=options.seeds, scale=options.scale)
    if not options.report:
        perform(stages(tasks, there, plan), options.cache, options.processes, show)
    head = recording.provenance(WHAT)
    head["command"] = head["command"].replace(" --report", "")  # what made the runs
    result = compared(tasks, there, plan, recorded(options.cache), BASELINE)
    written = report.write(options.out, head | result | {"skipped": absent}, options.plot)
    print("wrote " + ", ".join(str(path) for path in written))


if __name__ == "__main__":
    main()
