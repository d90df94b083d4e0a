"""All that is found out about a run before anything is loaded: read, identified, compared, decided.

A run, its rehearsal, and the steps that are taken again stand on the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from acmsao_cli.checkpoint.store import Checkpoint
from acmsao_cli.config.auto import value_of, with_values
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import Reading
from acmsao_cli.data.reading import bad
from acmsao_cli.data.stream import check_batch_size
from acmsao_cli.engine.continuation import (
    Continuation,
    as_begun,
    check_continuation,
    without_effect,
)
from acmsao_cli.engine.events import Listener
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.identity import Kind, Manifest
from acmsao_cli.launch.examples import identified, read_examples, tell_left_out
from acmsao_cli.memory.choose import Decided, decide
from acmsao_cli.memory.ladder import as_it_went_on, words_of


@dataclass(frozen=True)
class Prepared:
    """A run that may be assembled: as it was `asked` for, and with every open setting `decided`.

    `data` are the items of the reading's examples; `continuation` is None where nothing is gone on
    with, and so nothing was compared.
    """

    asked: RunConfig
    reading: Reading
    data: Manifest
    decided: Decided
    continuation: Continuation | None

    def told(self, allowed: Collection[Kind]) -> Iterator[str]:
        """What changed since, in words."""
        if self.continuation is None:
            yield from without_effect(allowed, "there is no checkpoint to compare with")
        else:
            yield from self.continuation.told()
        config = self.decided.config
        if config.before:
            was = with_values(config.recipe, config.before)
            words = words_of(was, {key: value_of(config.recipe, key) for key in config.before})
            yield f"goes on as it was changed when its memory ran out: {words}"


def prepare(
    config: RunConfig,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    allowed: Collection[Kind],
    listener: Listener,
) -> Prepared:
    """Read the examples, decide what is open, and hold all against `checkpoint`.

    Nothing is loaded or written. Raises InputError, CheckpointError and ConfigError.
    """
    known = folder.data_items()
    asked, found = read_examples(config, listener, known)
    reading, data = identified(asked, as_begun(found, checkpoint), known, listener)
    config = as_it_went_on(asked, checkpoint.header) if checkpoint else asked
    check_batch_size(len(reading.examples), config.recipe.training.batch_size)
    decided = decide(config)
    continuation = (
        check_continuation(decided.config, data, folder, checkpoint, allowed, listener)
        if checkpoint
        else None
    )
    tell_left_out(bad(reading)[len(bad(found)) :], listener)
    return Prepared(asked, reading, data, decided, continuation)
