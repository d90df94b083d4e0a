"""`acmsao resume`: go on with a run as it was, or see whether it would come to the same bits."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.options import AllowChangedOption, JsonOption

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.engine.folder import RunFolder


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Take steps again and compare; the run stays as it is."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many, with --verify; else 8.")
    ] = None,
    allow_changed: AllowChangedOption = None,
    json: JsonOption = False,
) -> None:
    """Continue a run with the settings it has."""
    from acmsao_cli.cli.train import refuse_to_be_one_of_several, require_output
    from acmsao_cli.errors import ConfigError

    if steps is not None and not verify:
        raise ConfigError(
            "--steps is for --verify", hint="training.steps decides how long a run is"
        )
    refuse_to_be_one_of_several(os.environ)
    run = run.expanduser()
    require_output(run, "auto")
    config, folder = as_it_is(run)
    from acmsao_cli.cli.listening import listen
    from acmsao_cli.engine.compose import require_composed
    from acmsao_cli.launch import run as launch
    from acmsao_cli.launch import verify as again

    require_composed(config)
    with ExitStack() as stack:
        listener = listen(stack, json)
        if verify:
            again.verify(config, folder, steps or 8, allow_changed or [], listener)
        else:
            launch.run(config, run, "auto", allow_changed or [], listener)


def as_it_is(path: Path) -> tuple[RunConfig, RunFolder]:
    """The configuration that a run wrote down. Raises CheckpointError where there is none."""
    from acmsao_cli.cli.resolved import resolved
    from acmsao_cli.engine.folder import RunFolder
    from acmsao_cli.errors import CheckpointError

    folder = RunFolder(path)
    name = folder.name
    if name is None and folder.exists:
        raise CheckpointError(
            f"{folder.recipe} is not what the run wrote",
            hint=f"`acmsao train RECIPE --output {path}`, with the run's recipe, goes on",
        )
    if name is None:
        raise CheckpointError(
            f"{path} is not a run: it has no run.yaml of one",
            hint="name a folder like runs/NAME-001",
        )
    return replace(resolved(str(folder.recipe), "none", None), name=name), folder
