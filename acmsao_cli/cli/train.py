"""`acmsao train`: from a recipe to a trained model, in a straight line."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.options import JsonOption, PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.engine.events import Listener, Started
    from acmsao_cli.engine.folder import Place


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, plan, and stop before loading.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model as RECIPE says."""
    from acmsao_cli.config.layers import Request, resolve

    config = resolve(Request(recipe, preset, tuple(settings or ())))
    quiet_libraries()
    with ExitStack() as stack:
        listener = listen(stack, json)
        if dry_run:
            rehearse(config, output, resume, listener)
        else:
            run(config, output, resume, listener)


def listen(stack: ExitStack, json: bool) -> Listener:
    """The display, and with --json the lines beside it."""
    from acmsao_cli.cli.describe import next_command
    from acmsao_cli.cli.display import (
        Display,
        both,
        json_lines,
        open_console,
        warnings_as_notices,
    )

    display = stack.enter_context(Display(open_console(to_stderr=json), next_command))
    listener = both(display, json_lines(sys.stdout)) if json else display
    stack.enter_context(warnings_as_notices(listener))
    return listener


def rehearse(config: RunConfig, output: Path | None, resume: str, listener: Listener) -> None:
    """Everything up to the loading of weights; nothing is written."""
    from acmsao_cli.data.reading import read, require
    from acmsao_cli.engine.events import Notice
    from acmsao_cli.engine.folder import choose_place

    place = choose_place(config.name, output, resume)
    reading = read(config.recipe.data)
    examples = require(reading)
    announce(config.with_data_format(reading.format), place, len(examples), listener)
    listener(Notice("dry run: nothing was loaded or written"))


def run(config: RunConfig, output: Path | None, resume: str, listener: Listener) -> None:
    """Read, plan, assemble, train; or say that it is already done."""
    from acmsao_cli.checkpoint.store import open_checkpoint
    from acmsao_cli.data.reading import read, require
    from acmsao_cli.engine.assemble import assemble, restore
    from acmsao_cli.engine.events import Finished, Notice
    from acmsao_cli.engine.folder import choose_place
    from acmsao_cli.engine.loop import train as train_run
    from acmsao_cli.engine.report import write_recipe
    from acmsao_cli.engine.signals import stop_on_signal

    place = choose_place(config.name, output, resume)
    if place.finished:
        listener(Notice(f"already done: {place.folder.path}"))
        listener(Finished(place.folder.path, place.folder.summary() or {}))
        return
    with stop_on_signal() as stop, place.folder.locked():
        checkpoint = open_checkpoint(place.checkpoint) if place.checkpoint else None
        reading = read(config.recipe.data)
        examples = require(reading)
        config = config.with_data_format(reading.format)
        start = announce(config, place, len(examples), listener)
        write_recipe(config, place.folder.recipe, start.facts)
        prepared = assemble(config, examples, listener)
        if checkpoint:
            restore(prepared, checkpoint, listener)
        train_run(prepared, place.folder, stop, listener)


def announce(config: RunConfig, place: Place, num_examples: int, listener: Listener) -> Started:
    """Plan the run's memory and say what is about to be done. Raises DoesNotFitError."""
    from acmsao_cli.cli.describe import describe_start
    from acmsao_cli.memory.planner import plan, require_fit

    made = plan(config)
    start = describe_start(config, place, made, num_examples)
    listener(start)
    require_fit(made, config.recipe)
    return start
