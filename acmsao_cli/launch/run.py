"""A run from its configuration to its end, in a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from acmsao_cli.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint, open_newest
from acmsao_cli.config.auto import value_of
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.manifest import left_out
from acmsao_cli.data.reading import bad
from acmsao_cli.data.stream import check_batch_size
from acmsao_cli.engine.continuation import (
    as_begun,
    check_continuation,
    sources_of,
    without_effect,
)
from acmsao_cli.engine.events import Finished, Listener, Notice, Started
from acmsao_cli.engine.folder import Place, choose_place, look_again
from acmsao_cli.engine.signals import stop_on_signal
from acmsao_cli.identity import Kind
from acmsao_cli.launch.attempts import Training
from acmsao_cli.launch.examples import identified, read_examples, tell_left_out
from acmsao_cli.launch.words import describe_start
from acmsao_cli.memory.advise import require_fit
from acmsao_cli.memory.choose import Decided, decide
from acmsao_cli.memory.ladder import as_it_went_on, words_of
from acmsao_cli.writing import require_space

# A finished run whose recipe now asks for another length goes on.
LENGTH: Final = ("training.steps", "training.epochs")
NEW: Final = "there is no checkpoint to compare with"


def rehearse(
    config: RunConfig,
    output: Path | None,
    resume: str,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Everything up to the loading of weights; nothing is written."""
    place = choose_place(config.name, output, resume)
    config, reading = read_examples(config, listener)
    examples = reading.examples
    announce(decided(config, len(examples)), place, len(examples), listener)
    for notice in without_effect(allow_changed, "a dry run compares nothing"):
        listener(Notice(notice))
    listener(Notice("dry run: nothing was loaded or written"))


def run(
    config: RunConfig,
    output: Path | None,
    resume: str,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Read, plan, assemble, train; or say that it is already done."""
    place = choose_place(config.name, output, resume)
    with stop_on_signal() as stop, place.folder.locked():
        CheckpointStore(place.folder.checkpoints, config.recipe.checkpoint.keep).remove_leftovers()
        place = look_again(place)
        folder, known = place.folder, place.folder.data_items()
        asked, found = read_examples(config, listener, known)
        place, checkpoint = usable(place, listener)
        reading = as_begun(found, checkpoint)
        reading, data = identified(config, reading, known, listener)
        examples = reading.examples
        config = as_it_went_on(asked, checkpoint.header) if checkpoint else asked
        planned = decided(config, len(examples))
        config = planned.config
        continuation = (
            check_continuation(config, data, folder, checkpoint, allow_changed, listener)
            if checkpoint
            else None
        )
        changes = continuation.free if continuation else ()
        if place.finished and not any(change.startswith(LENGTH) for change in changes):
            for notice in without_effect(allow_changed, "the run is finished"):
                listener(Notice(notice))
            listener(Notice(f"already done: {place.folder.path}"))
            listener(Finished(place.folder.path, place.folder.summary() or {}))
            return
        announce(planned, place, len(examples), listener)
        folder.keep_data(data, left_out(bad(reading), config.recipe.data.source))
        tell_left_out(bad(reading)[len(bad(found)) :], listener)
        for notice in continuation.told() if continuation else without_effect(allow_changed, NEW):
            listener(Notice(notice))
        if config.before:
            words = words_of(
                asked.recipe, {key: value_of(config.recipe, key) for key in config.before}
            )
            listener(Notice(f"goes on as it was changed when its memory ran out: {words}"))
        with sources_of(config, data, folder, continuation) as sources:
            training = Training(asked, place, reading, data, sources, checkpoint, stop, listener)
            training.to_the_end(planned)


def usable(place: Place, listener: Listener) -> tuple[Place, Checkpoint | None]:
    """The checkpoint to go on from, and the place with it: where the newest is damaged, an older.

    One that was asked for by its path is taken or refused.
    """
    if place.checkpoint is None:
        return place, None
    if place.explicit:
        return place, open_checkpoint(place.checkpoint)
    checkpoint, wrong = open_newest(place.folder.checkpoints)
    for message in wrong:
        listener(Notice(f"{message}; going on from an older one"))
    return replace(place, checkpoint=checkpoint.path if checkpoint else None), checkpoint


def decided(config: RunConfig, num_examples: int) -> Decided:
    """The run with every open setting decided for the memory there is, and its plan."""
    check_batch_size(num_examples, config.recipe.training.batch_size)
    return decide(config)


def announce(planned: Decided, place: Place, num_examples: int, listener: Listener) -> Started:
    """Say what is about to be done, and what was decided.

    Raises DoesNotFitError where memory is missing, OutputError where space on the disk is.
    """
    start = describe_start(planned, place, num_examples)
    listener(start)
    require_fit(planned.plan, planned.config)
    wanted = sum(planned.plan.disk.values()) - place.folder.checkpoint_bytes()
    require_space(place.folder.path, wanted, "this run")
    return start
