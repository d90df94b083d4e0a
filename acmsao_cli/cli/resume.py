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
    from collections.abc import Sequence

    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.engine.events import Listener
    from acmsao_cli.engine.folder import RunFolder
    from acmsao_cli.identity import Kind


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
    from acmsao_cli.cli import train
    from acmsao_cli.engine.compose import require_composed
    from acmsao_cli.errors import ConfigError

    if steps is not None and not verify:
        raise ConfigError(
            "--steps is for --verify", hint="training.steps decides how long a run is"
        )
    train.refuse_to_be_one_of_several(os.environ)
    run = run.expanduser()
    train.require_output(run, "auto")
    config, folder = as_it_is(run)
    require_composed(config)
    with ExitStack() as stack:
        listener = train.listen(stack, json)
        if verify:
            compare(config, folder, steps or 8, allow_changed or [], listener)
        else:
            train.run(config, run, "auto", allow_changed or [], listener)


def as_it_is(path: Path) -> tuple[RunConfig, RunFolder]:
    """The configuration that a run wrote down. Raises CheckpointError where there is none."""
    from acmsao_cli.cli.resolved import resolved
    from acmsao_cli.engine.folder import RunFolder
    from acmsao_cli.errors import CheckpointError

    folder = RunFolder(path)
    name = folder.name
    if name is None:
        raise CheckpointError(
            f"{path} is not a run: it has no run.yaml of one",
            hint="name a folder like runs/NAME-001",
        )
    return replace(resolved(str(folder.recipe), "none", None), name=name), folder


def compare(
    config: RunConfig,
    folder: RunFolder,
    num_steps: int,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Take steps again. Raises CheckpointError that says what did not come out as it was."""
    from acmsao_cli.cli.train import NEW, identified, read_examples
    from acmsao_cli.engine.assemble import assemble, restore
    from acmsao_cli.engine.continuation import as_begun, check_continuation, without_effect
    from acmsao_cli.engine.events import Notice
    from acmsao_cli.engine.replay import passage, replay
    from acmsao_cli.engine.report import read_metrics
    from acmsao_cli.engine.signals import stop_on_signal
    from acmsao_cli.errors import CheckpointError

    with stop_on_signal(), folder.locked():
        chosen = passage(folder, read_metrics(folder.metrics), num_steps)
        known = folder.data_items()
        config, reading = read_examples(config, listener, known)
        reading = as_begun(reading, chosen.checkpoint)
        told = without_effect(allow_changed, NEW)
        if chosen.checkpoint:
            reading, data = identified(config, reading, known, listener)
            told = check_continuation(
                config, data, folder, chosen.checkpoint, allow_changed, listener
            ).told()
        for notice in told:
            listener(Notice(notice))
        run = assemble(config, reading, listener, continued=chosen.checkpoint is not None)
        if chosen.checkpoint:
            restore(run, chosen.checkpoint, listener)
        began = "the beginning" if run.step == 0 else f"step {run.step}"
        wrong = next(replay(run, folder, chosen.rows, listener), None)
    if wrong:
        raise CheckpointError(
            f"{folder.path} does not come to the same bits: {wrong}",
            hint="another machine, another number of threads or other versions of the libraries "
            "compute with other last digits; the run can go on all the same",
        )
    listener(Notice(f"{len(chosen.rows)} steps from {began} came out the same to the bit"))
