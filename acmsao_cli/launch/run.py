"""A run from its configuration to its end, in a straight line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from acmsao_cli.checkpoint.resume import recipe_changes
from acmsao_cli.checkpoint.store import Checkpoint, CheckpointStore, open_checkpoint, open_newest
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.manifest import left_out
from acmsao_cli.data.reading import bad
from acmsao_cli.engine.continuation import sources_of, without_effect
from acmsao_cli.engine.events import Finished, Listener, Notice
from acmsao_cli.engine.folder import Place, choose_place, look_again
from acmsao_cli.engine.signals import stop_on_signal
from acmsao_cli.identity import Kind
from acmsao_cli.launch.attempts import Training
from acmsao_cli.launch.prepare import Prepared, prepare
from acmsao_cli.launch.words import describe_start
from acmsao_cli.memory.advise import require_fit
from acmsao_cli.memory.ladder import as_it_went_on
from acmsao_cli.writing import require_space

# A finished run whose recipe now asks for another length goes on.
LENGTH: Final = ("training.steps", "training.epochs")


def rehearse(
    config: RunConfig,
    output: Path | None,
    resume: str,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Everything up to the loading of weights; nothing is written."""
    place, checkpoint = usable(choose_place(config.name, output, resume), listener)
    if is_done(place, checkpoint, config, allow_changed):
        tell_done(place, allow_changed, listener)
        return
    prepared = prepare(config, place.folder, checkpoint, allow_changed, listener)
    announce(prepared, place, allow_changed, listener)
    listener(Notice("dry run: nothing was loaded or written"))


def run(
    config: RunConfig,
    output: Path | None,
    resume: str,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Prepare, assemble, train; or say that it is already done."""
    place = choose_place(config.name, output, resume)
    with stop_on_signal() as stop, place.folder.locked():
        CheckpointStore(place.folder.checkpoints, config.recipe.checkpoint.keep).remove_leftovers()
        place, checkpoint = usable(look_again(place), listener)
        if is_done(place, checkpoint, config, allow_changed):
            tell_done(place, allow_changed, listener)
            return
        folder = place.folder
        found = prepare(config, folder, checkpoint, allow_changed, listener)
        announce(found, place, allow_changed, listener)
        reading, data = found.reading, found.data
        folder.keep_data(data, left_out(bad(reading), config.recipe.data.source))
        going_on = found.continuation
        with sources_of(found.decided.config, data, folder, going_on, listener) as sources:
            training = Training(
                found.asked, place, reading, data, sources, checkpoint, stop, listener
            )
            training.to_the_end(found.decided)


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


def is_done(
    place: Place, checkpoint: Checkpoint | None, config: RunConfig, allowed: Collection[Kind]
) -> bool:
    """Whether the run in `place` is finished, and what `config` asks for: its recipe, but for what
    may change, and its length. What has become of data and model since is no matter.
    """
    if not place.finished or checkpoint is None:
        return place.finished
    header = checkpoint.header
    asked = config.with_data_format(header["recipe"]["data"]["format"])
    wanted = as_it_went_on(asked, header).as_dict()
    free, other = recipe_changes(header["recipe"], wanted)
    same = not other or Kind.recipe in allowed
    return same and not any(change.key in LENGTH for change in free)


def tell_done(place: Place, allowed: Collection[Kind], listener: Listener) -> None:
    """That nothing is left to do."""
    for notice in without_effect(allowed, "the run is finished"):
        listener(Notice(notice))
    listener(Notice(f"already done: {place.folder.path}"))
    listener(Finished(place.folder.path, place.folder.summary() or {}))


def announce(
    prepared: Prepared, place: Place, allowed: Collection[Kind], listener: Listener
) -> None:
    """Say what is about to be done, what was decided, and what changed since the checkpoint.

    Raises DoesNotFitError where memory is missing, OutputError where space on the disk is.
    """
    decided = prepared.decided
    listener(describe_start(decided, place, len(prepared.reading.examples)))
    require_fit(decided.plan, decided.config)
    wanted = sum(decided.plan.disk.values()) - place.folder.checkpoint_bytes()
    require_space(place.folder.path, wanted, "this run")
    for notice in prepared.told(allowed):
        listener(Notice(notice))
