"""Arguments that several commands take, written once."""

from __future__ import annotations

from typing import Annotated

import typer

from acmsao_cli.identity import Kind

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or path of a YAML file.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", metavar="NAME", help="8gb, 16gb, 24gb, 80gb, cpu, none, or a path."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value; may be repeated."),
]
AllowChangedOption = Annotated[
    list[Kind] | None,
    typer.Option(metavar="|".join(Kind), help="Go on although this has changed; may be repeated."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="JSON lines on stdout; text for people goes to stderr.")
]
