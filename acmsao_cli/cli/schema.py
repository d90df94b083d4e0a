"""`acmsao schema`: what editors need to complete and check a recipe."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer


class Family(StrEnum):
    """The families that have a schema."""

    sdxl = "sdxl"
    causal_lm = "causal_lm"


def schema(
    family: Annotated[
        Family | None, typer.Option(help="Only this model family's recipes.", show_default="all")
    ] = None,
) -> None:
    """Print the JSON schema of a recipe, for editors."""
    from acmsao_cli.config.schema import json_schema

    print(json.dumps(json_schema(family), indent=2))
