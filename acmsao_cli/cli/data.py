"""`acmsao data`: what training will see of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.console import safe
from acmsao_cli.cli.options import PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from acmsao_cli.data.base import Problem

app = typer.Typer(help="Look at a data set before training on it.", no_args_is_help=True)


@app.command()
def check(
    recipe: RecipeArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    show: Annotated[int, typer.Option(min=0, help="How many decoded examples to show.")] = 3,
) -> None:
    """Say what was found, what is wrong with which file, and show decoded training examples.

    Exit code 3 if a training on this data would be refused.
    """
    from acmsao_cli.config.layers import Request, resolve

    config = resolve(Request(recipe, preset, tuple(settings or ())))
    quiet_libraries()
    from acmsao_cli.data.check import summarise
    from acmsao_cli.data.reading import read, require
    from acmsao_cli.data.scan import decoded
    from acmsao_cli.models import catalog

    section = config.recipe.data
    reading = decoded(read(section), section)
    for name, value in summarise(reading, section):
        typer.echo(safe(f"{name}: {value}"))
    for problem in reading.problems:
        typer.echo(problem_line(problem))
    if show and reading.examples:
        family = catalog.family(config.recipe.model.family)
        for text in family.preview(config.recipe, reading.examples[:show]):
            typer.echo(safe(f"\n{text}"))
    require(reading, section)


def problem_line(problem: Problem) -> str:
    """One problem on one line."""
    return f"{problem.severity}: {problem}"
