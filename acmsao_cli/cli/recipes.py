"""`acmsao recipes`: trainings that come with the program, to run, read or copy."""

from __future__ import annotations

from typing import Annotated

import typer

from acmsao_cli.cli.console import print_json, print_table
from acmsao_cli.cli.options import JsonOption, PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.shelf import Destination, ForceOption, copy_file, text_of
from acmsao_cli.config.locate import shipped
from acmsao_cli.errors import ConfigError

app = typer.Typer(help="Trainings that come with acmsao: list, show, copy.", no_args_is_help=True)


@app.command("list")
def list_recipes(json: JsonOption = False) -> None:
    """Name the recipes and say what each is for."""
    from acmsao_cli.config.layers import Request, resolve

    found = [(file.name, resolve(Request(file.name)).recipe) for file in shipped("recipe")]
    if json:
        print_json(
            [
                {
                    "name": name,
                    "about": recipe.about,
                    "family": recipe.model.family,
                    "method": recipe.method.kind,
                }
                for name, recipe in found
            ]
        )
        return
    print_table([(name, recipe.about) for name, recipe in found])


@app.command()
def show(
    recipe: RecipeArgument,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Every value, with where it came from.")
    ] = False,
    preset: PresetOption = None,
    settings: SetOption = None,
) -> None:
    """Print a recipe as it is written, or --resolved."""
    from acmsao_cli.config.layers import Request, resolve
    from acmsao_cli.config.writing import to_yaml

    if resolved:
        print(to_yaml(resolve(Request(recipe, preset, tuple(settings or ())))), end="")
        return
    if preset is not None or settings:
        raise ConfigError(
            "--preset and --set change nothing in the recipe as it is written",
            hint="add --resolved to see the values they lead to",
        )
    print(text_of("recipe", recipe), end="")


@app.command()
def copy(recipe: RecipeArgument, destination: Destination, force: ForceOption = False) -> None:
    """Copy a recipe to a file of your own, to change it."""
    target = copy_file("recipe", recipe, destination, force=force)
    print(f"wrote {target}; next: acmsao validate {target}")
