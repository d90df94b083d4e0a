"""`acmsao compare`: optimizers on small tasks, each with the same tuning budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acmsao_cli.cli.quiet import quiet_libraries


def compare(
    tasks: Annotated[list[str] | None, typer.Argument(metavar="[TASK]...", help="Tasks.")] = None,
    optimizer: Annotated[list[str] | None, typer.Option("--optimizer", help="Contender.")] = None,
    trials: int = 5,
    seeds: int = 3,
    jobs: int = 1,
    output: Path = Path("compare"),
    scale: float = 1.0,
) -> None:
    """Compare optimizers on small tasks."""
    quiet_libraries()
    from acmsao_cli.bench.compare import stages
    from acmsao_cli.bench.contenders import CONTENDERS
    from acmsao_cli.bench.contest import Plan, outcome
    from acmsao_cli.bench.runner import Progress, perform
    from acmsao_cli.bench.tasks import TASKS

    def listener(p: Progress) -> None:
        row = p.row
        print(
            f"{p.done}/{p.total} {p.task} {row['contender']} lr {row['lr']:g} seed {row['seed']}:"
            f" {outcome(row)}, {p.left / 60:.0f} min left",
            flush=True,
        )

    plan = Plan(trials, seeds, scale)
    chosen = [TASKS[name] for name in tasks or list(TASKS)[:4]]
    contenders = [CONTENDERS[name] for name in optimizer or CONTENDERS]
    perform(stages(chosen, contenders, plan), output / "runs.jsonl", jobs, listener)
