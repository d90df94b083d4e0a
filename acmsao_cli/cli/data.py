"""`acmsao data`: what training will see of a data set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.options import PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.errors import DataError

if TYPE_CHECKING:
    from acmsao_cli.data.base import Example, Problem, Reading

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
    from acmsao_cli.data.reading import read
    from acmsao_cli.models import catalog

    reading = opened(read(config.recipe.data))
    for name, value in summarise(reading, config.recipe.data):
        typer.echo(f"{name}: {value}")
    for problem in reading.problems:
        typer.echo(problem_line(problem))
    if show and reading.examples:
        family = catalog.family(config.recipe.model.family)
        for text in family.preview(config.recipe, reading.examples[:show]):
            typer.echo(f"\n{text}")
    refuse_unusable(reading)


def opened(reading: Reading) -> Reading:
    """The reading once every picture was decoded as for a training; broken ones are errors."""
    from acmsao_cli.data.base import ImageExample, Problem
    from acmsao_cli.errors import DataError

    whole: list[Example] = []
    problems = list(reading.problems)
    for example in reading.examples:
        try:
            if isinstance(example, ImageExample):
                example.open()
            whole.append(example)
        except DataError as error:
            problems.append(Problem.of(example.place, error))
    return replace(reading, examples=tuple(whole), problems=tuple(problems))


def problem_line(problem: Problem) -> str:
    """One problem on one line."""
    return f"{problem.severity}: {problem.place}: {problem.message}"


def refuse_unusable(reading: Reading) -> None:
    """Raise DataError if a training would refuse this data."""
    errors = sum(problem.severity == "error" for problem in reading.problems)
    if errors or not reading.examples:
        raise DataError(
            f"the data cannot be trained on: {errors} errors, {len(reading.examples)} examples",
            hint="mend or remove the files named above",
        )
