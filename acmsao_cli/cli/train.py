"""`acmsao train`: from a recipe to a trained model, in a straight line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from acmsao_cli.cli.options import (
    AllowChangedOption,
    JsonOption,
    PresetOption,
    RecipeArgument,
    SetOption,
)
from acmsao_cli.errors import ConfigError

# What torchrun and `accelerate launch` tell each process that they start.
WORLD, RANK = "WORLD_SIZE", "LOCAL_RANK"


def train(
    recipe: RecipeArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Run folder; else runs/RECIPE-NNN."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(metavar="auto|never|PATH", help="Continue an unfinished run, or a given one."),
    ] = "auto",
    allow_changed: AllowChangedOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, plan, and stop before loading.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model as RECIPE says."""
    from acmsao_cli.cli.resolved import resolved

    refuse_to_be_one_of_several(os.environ)
    if not dry_run:
        require_output(output, resume)
    config = resolved(recipe, preset, settings)
    from acmsao_cli.cli.listening import listen
    from acmsao_cli.engine.compose import require_composed
    from acmsao_cli.launch.run import rehearse, run

    require_composed(config)
    with ExitStack() as stack:
        listener = listen(stack, json)
        if dry_run:
            rehearse(config, output, resume, allow_changed or [], listener)
        else:
            run(config, output, resume, allow_changed or [], listener)


def refuse_to_be_one_of_several(environment: Mapping[str, str]) -> None:
    """Raise ConfigError where a launcher started this process beside others, for one training."""
    of_several = environment.get(WORLD, "1") not in ("", "1")
    found = [name for name in (WORLD, RANK) if name in environment and (of_several or name == RANK)]
    if found:
        named = " and ".join(f"{name}={environment[name]}" for name in found)
        raise ConfigError(
            f"this process was started as one of several ({named}); a run is one process",
            hint="start it as `acmsao train`, without torchrun or accelerate launch; or unset "
            + " ".join(found),
        )


def require_output(output: Path | None, resume: str) -> None:
    """Raise OutputError where the run cannot be written; before torch is loaded, so at once."""
    from acmsao_cli.writing import require_writable

    named = None if resume in ("auto", "never") else Path(resume)
    require_writable((output or named or Path("runs")).expanduser())
