"""What `acmsao recipes` and `acmsao presets` share: named YAML files that can be copied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acmsao_cli.config.locate import Kind, locate
from acmsao_cli.errors import ConfigError, OutputError

Destination = Annotated[
    str, typer.Argument(metavar="DEST", help="File to write, or a folder to write into.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite DEST if it exists.")]


def text_of(kind: Kind, name: str) -> str:
    """Return a file as it stands, comments and all."""
    from acmsao_cli.config.reading import read_file

    located = locate(kind, name)
    read_file(located.path, located.shown)  # is it one that can be read at all?
    return located.path.read_text(encoding="utf-8-sig")


def copy_file(kind: Kind, name: str, destination: str, *, force: bool) -> Path:
    """Write a named file's text to a path or into a folder; return where it is now."""
    text = text_of(kind, name)
    target = Path(destination)
    if target.is_dir() or destination.endswith("/"):
        target /= locate(kind, name).path.name
    if target.exists() and not force:
        raise ConfigError(f"{target} exists already", hint="choose another name, or add --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from error
    return target
