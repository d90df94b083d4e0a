"""`acmsao presets`: how a training is made to fit a machine."""

from __future__ import annotations

from typing import Annotated

import typer

from acmsao_cli.cli.console import print_json, print_table
from acmsao_cli.cli.options import JsonOption
from acmsao_cli.cli.shelf import Destination, ForceOption, copy_file, text_of
from acmsao_cli.config.locate import locate, shipped

app = typer.Typer(help="Settings that make a run fit: list, show, copy.", no_args_is_help=True)

PresetArgument = Annotated[
    str, typer.Argument(metavar="PRESET", help="Name of a preset, or path of a YAML file.")
]


@app.command("list")
def list_presets(json: JsonOption = False) -> None:
    """Name the presets and say which machine each is for."""
    from acmsao_cli.config.preset import load_preset

    found = [load_preset(file) for file in shipped("preset")]
    if json:
        print_json([{"name": preset.name, "about": preset.about} for preset in found])
        return
    print_table([(preset.name, preset.about) for preset in found])


@app.command()
def show(preset: PresetArgument) -> None:
    """Print a preset as it is written."""
    from acmsao_cli.config.preset import load_preset

    load_preset(locate("preset", preset))
    print(text_of("preset", preset), end="")


@app.command()
def copy(preset: PresetArgument, destination: Destination, force: ForceOption = False) -> None:
    """Copy a preset to a file of your own, to change it."""
    target = copy_file("preset", preset, destination, force=force)
    print(f"wrote {target}; next: acmsao train RECIPE --preset {target}")
