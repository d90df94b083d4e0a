"""`acmsao models`: the families, and the models that travel with the program."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from acmsao_cli.cli.console import safe
from acmsao_cli.cli.quiet import quiet_libraries

app = typer.Typer(help="Model families and the models shipped inside.", no_args_is_help=True)


class Layout(StrEnum):
    """How a model lies on disk."""

    diffusers = "diffusers"
    single_file = "single-file"
    transformers = "transformers"


@app.command("list")
def list_models() -> None:
    """Name the families and the models shipped inside."""
    from acmsao_cli.builtin import MODELS
    from acmsao_cli.config.recipe import FAMILIES

    for name, schema in FAMILIES.items():
        typer.echo(f"{name:<12} {(schema.__doc__ or '').splitlines()[0]}")
    for name, about in MODELS.items():
        typer.echo(f"builtin:{name:<18} {about}")


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="builtin:NAME, a path or hub id.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write into.")],
    layout: Annotated[
        Layout | None,
        typer.Option("--format", help="SDXL: a diffusers folder, or one .safetensors file."),
    ] = None,
) -> None:
    """Write a model out as files other programs load."""
    quiet_libraries()
    from acmsao_cli.models.copying import export_model

    for path in export_model(source, directory, layout.value if layout else None):
        typer.echo(safe(str(path)))
