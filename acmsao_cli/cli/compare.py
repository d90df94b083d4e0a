"""`acmsao compare`: optimizers on small tasks, each with the same tuning budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from acmsao_cli.errors import ConfigError, OptimizerError

if TYPE_CHECKING:
    from acmsao_cli.bench.contenders import Contender


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
    contenders = contenders_asked(optimizer, reference)
    quiet_libraries()
    place = contest.Place(output, json)
    if report:
        contest.require_runs(place)
    chosen = contest.tasks_asked(tasks)
    from acmsao_cli.bench.compare import buildable, compared, reference_of, stages
    from acmsao_cli.bench.contest import Plan, recorded
    from acmsao_cli.bench.provenance import provenance

    there, absent = buildable(contenders)
    if optimizer and absent:
        name, reason = next(iter(absent.items()))
        raise OptimizerError(f"--optimizer {name}: {reason}")
    for name, reason in absent.items():
        place.say(f"left out: {name}: {reason}")
    plan = Plan(trials, seeds, scale)
    if not report:
        contest.perform(stages(chosen, there, plan), jobs, place)
    result = provenance("Optimizers compared", "acmsao") | compared(
        chosen, there, plan, recorded(place.cache), reference_of(there, reference)
    )
    contest.finish("compare", result | {"skipped": absent}, place)


def contenders_asked(texts: list[str] | None, reference: str | None) -> list[Contender]:
    """Those named, or the usual table. Raises ConfigError where the reference is none of them."""
    from acmsao_cli.bench.asked import contender_asked, contenders_asked
    from acmsao_cli.bench.contenders import CONTENDERS

    found = contenders_asked(texts) if texts else list(CONTENDERS.values())
    names = [one.name for one in found]
    if reference is not None and contender_asked(reference).name not in names:
        raise ConfigError(
            f"--reference {reference} is not among the optimizers",
            hint=f"name one of {', '.join(names)}",
        )
    return found
