"""`acmsao ablate`: an optimizer with each of its parts changed alone."""

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


def ablate(
    tasks: TasksArgument = None,
    optimizer: Annotated[
        str,
        typer.Option(
            "--optimizer", metavar="NAME|YAML", help="Whose parts: as `acmsao compare` takes it."
        ),
    ] = "acmsao",
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Each of its numbers at values around its own.")
    ] = False,
    lr: Annotated[
        float | None,
        typer.Option("--lr", min=1e-12, help="The rate of all runs; else tuned as in compare."),
    ] = None,
    trials: TrialsOption = 5,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each row; else 3, and 1 of a number.")
    ] = None,
    jobs: JobsOption = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Runs and report.")
    ] = Path("ablate"),
    scale: ScaleOption = 1.0,
    report: ReportOption = False,
    json: JsonOption = False,
) -> None:
    """Take an optimizer apart: each of its parts changed alone, at its tuned rate."""
    from acmsao_cli.bench.ablation import ABLATIONS, variations
    from acmsao_cli.bench.asked import contender_asked

    base = contender_asked(optimizer)
    asked = variations(base) if not sensitivity or base.says["name"] in ABLATIONS else []
    quiet_libraries()
    place = contest.Place(output, json)
    if report:
        contest.require_runs(place)
    chosen = contest.tasks_asked(tasks)
    from acmsao_cli.bench.ablation import Study
    from acmsao_cli.bench.compare import buildable
    from acmsao_cli.bench.contest import Plan, recorded
    from acmsao_cli.bench.provenance import provenance
    from acmsao_cli.bench.sensitivity import grids

    base.text  # noqa: B018  # refused now, with the reason, if it cannot be composed
    rows, absent = buildable(asked)
    along, without = grids(base) if sensitivity else ([], {})
    for name, reason in {**absent, **without}.items():
        place.say(f"left out: {name}: {reason}")
    study = Study(base, rows, along, Plan(trials, seeds or 3, scale), seeds or 1, lr)
    if not report:
        contest.perform(study.stages(chosen), jobs, place)
    head = provenance(f"Parts of {base.name}", "acmsao")
    result = head | study.result(chosen, recorded(place.cache)) | {"skipped": {**absent, **without}}
    contest.finish("ablate", result, place)
