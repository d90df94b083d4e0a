"""`acmsao compare`: optimizers on small tasks, each with the same tuning budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acmsao_cli.cli import contest
from acmsao_cli.cli.contest import (
    JobsOption,
    ReportOption,
    ScaleOption,
    TasksArgument,
    TrialsOption,
)
from acmsao_cli.cli.options import JsonOption
from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.errors import OptimizerError


def compare(
    tasks: TasksArgument = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer",
            metavar="NAME|YAML",
            help="A rule, a name of the usual table, or 'lion: {storage: factored}'; may be "
            "repeated. Else the usual table.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whom the others are held against; else adamw."),
    ] = None,
    trials: TrialsOption = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Runs at the best rate, of other seeds.")] = 3,
    jobs: JobsOption = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Runs and report.")
    ] = Path("compare"),
    scale: ScaleOption = 1.0,
    report: ReportOption = False,
    json: JsonOption = False,
) -> None:
    """Compare optimizers on small tasks, at equal tuning budget."""
    from acmsao_cli.bench.asked import contender_asked, contenders_asked, reference_of
    from acmsao_cli.bench.contenders import CONTENDERS

    contenders = contenders_asked(optimizer) if optimizer else list(CONTENDERS.values())
    against = reference_of(contenders, contender_asked(reference) if reference else None)
    quiet_libraries()
    place = contest.Place(output, json)
    if report:
        contest.require_runs(place)
    chosen = contest.tasks_asked(tasks)
    from acmsao_cli.bench.compare import buildable, compared, stages
    from acmsao_cli.bench.contest import Plan, recorded
    from acmsao_cli.bench.provenance import provenance

    there, absent = buildable(contenders)
    if optimizer and absent:
        name, reason = next(iter(absent.items()))
        raise OptimizerError(f"--optimizer {name}: {reason}")
    if against in absent:
        raise OptimizerError(f"--reference {against}: {absent[against]}")
    for name, reason in absent.items():
        place.say(f"left out: {name}: {reason}")
    plan = Plan(trials, seeds, scale)
    if not report:
        contest.perform(stages(chosen, there, plan), jobs, place)
    result = provenance("Optimizers compared", "acmsao") | compared(
        chosen, there, plan, recorded(place.cache), against
    )
    contest.finish("compare", result | {"skipped": absent}, place)
