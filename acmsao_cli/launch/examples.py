"""The data of a run, looked at before anything is loaded; what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import Problem, Reading
from acmsao_cli.data.manifest import manifest
from acmsao_cli.data.reading import Remaining, bad, listed, read, require
from acmsao_cli.data.scan import decoded
from acmsao_cli.engine.events import Listener, Notice, Working
from acmsao_cli.identity import Item, Manifest

WARNINGS_SHOWN: Final = 5


def read_examples(
    config: RunConfig, listener: Listener, seen: Manifest | None = None
) -> tuple[RunConfig, Reading]:
    """The data, with what cannot be used left out or refused, and the configuration with its
    format decided; warnings are told. Pictures that were `seen` whole are not decoded again.
    """

    def progress(done: int, total: int) -> None:
        listener(Working("looking at the pictures", done, total))

    section = config.recipe.data
    reading = decoded(read(section), section, seen, progress)
    require(reading, section)
    warnings = [problem for problem in reading.problems if problem.severity == "warning"]
    for problem in warnings[:WARNINGS_SHOWN]:
        listener(Notice(str(problem)))
    if len(warnings) > WARNINGS_SHOWN:
        more = len(warnings) - WARNINGS_SHOWN
        listener(Notice(f"{more} more warnings: `acmsao data check` tells all"))
    tell_left_out(bad(reading), listener)
    return config.with_data_format(reading.format), reading


def tell_left_out(errors: Sequence[Problem], listener: Listener) -> None:
    """What is not trained on, if anything."""
    if errors:
        what = "1 bad item is" if len(errors) == 1 else f"{len(errors)} bad items are"
        listener(Notice(f"{what} left out:{listed(errors)}"))


def identified(
    config: RunConfig, reading: Reading, known: Manifest, listener: Listener
) -> tuple[Reading, dict[str, Item]]:
    """What the examples are, and the reading without those that are gone meanwhile; pictures that
    were `known` are not read again.
    """

    def progress(done: int, total: int) -> None:
        listener(Working("hashing the pictures", done, total))

    left = Remaining(reading, config.recipe.data)
    items = manifest(reading.examples, known, progress, left.leave_out)
    return left.reading, items
