"""`acmsao train`: from a recipe to a trained model, in a straight line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acmsao_cli.cli.options import (
    AllowChangedOption,
    JsonOption,
    PresetOption,
    RecipeArgument,
    SetOption,
)
from acmsao_cli.errors import ConfigError

if TYPE_CHECKING:
    from acmsao_cli.checkpoint.store import Checkpoint
    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.data.base import Example, Reading
    from acmsao_cli.engine.continuation import Sources
    from acmsao_cli.engine.events import Listener, Started
    from acmsao_cli.engine.folder import Place
    from acmsao_cli.engine.loop import PoisonedStepError
    from acmsao_cli.engine.signals import Stop
    from acmsao_cli.errors import MemoryRanOutError
    from acmsao_cli.identity import Item, Kind, Manifest
    from acmsao_cli.memory.choose import Decided


WARNINGS_SHOWN = 5
# What torchrun and `accelerate launch` tell each process that they start.
WORLD, RANK = "WORLD_SIZE", "LOCAL_RANK"
# A finished run whose recipe now asks for another length goes on.
LENGTH = ("training.steps", "training.epochs")
NEW = "there is no checkpoint to compare with"


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
    from acmsao_cli.engine.compose import require_composed

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


def listen(stack: ExitStack, json: bool) -> Listener:
    """The display, and with --json the lines beside it."""
    from acmsao_cli.cli.describe import next_command
    from acmsao_cli.cli.display import (
        Display,
        both,
        json_lines,
        kept_private,
        open_console,
        warnings_as_notices,
    )

    display = stack.enter_context(Display(open_console(to_stderr=json), next_command))
    listener = kept_private(both(display, json_lines(sys.stdout)) if json else display)
    stack.enter_context(warnings_as_notices(listener))
    return listener


def rehearse(
    config: RunConfig,
    output: Path | None,
    resume: str,
    allow_changed: Sequence[Kind],
    listener: Listener,
) -> None:
    """Everything up to the loading of weights; nothing is written."""
    from acmsao_cli.engine.continuation import without_effect
    from acmsao_cli.engine.events import Notice
    from acmsao_cli.engine.folder import choose_place

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
    from acmsao_cli.checkpoint.store import CheckpointStore
    from acmsao_cli.config.auto import value_of
    from acmsao_cli.data.manifest import left_out
    from acmsao_cli.engine.continuation import check_continuation, sources_of, without_effect
    from acmsao_cli.engine.events import Finished, Notice
    from acmsao_cli.engine.folder import choose_place, look_again
    from acmsao_cli.engine.signals import stop_on_signal
    from acmsao_cli.memory.ladder import as_it_went_on, words_of

    place = choose_place(config.name, output, resume)
    with stop_on_signal() as stop, place.folder.locked():
        CheckpointStore(place.folder.checkpoints, config.recipe.checkpoint.keep).remove_leftovers()
        place = look_again(place)
        folder, known = place.folder, place.folder.data_items()
        asked, reading = read_examples(config, listener, known)
        examples, data = reading.examples, manifest_of(reading, known, listener)
        place, checkpoint = usable(place, listener)
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
        folder.keep_data(data, left_out(reading, config.recipe.data.source))
        for notice in continuation.told() if continuation else without_effect(allow_changed, NEW):
            listener(Notice(notice))
        if config.before:
            words = words_of(
                asked.recipe, {key: value_of(config.recipe, key) for key in config.before}
            )
            listener(Notice(f"goes on as it was changed when its memory ran out: {words}"))
        with sources_of(config, data, folder, continuation) as sources:
            training = Training(asked, place, examples, sources, checkpoint, stop, listener)
            training.to_the_end(planned)


def usable(place: Place, listener: Listener) -> tuple[Place, Checkpoint | None]:
    """The checkpoint to go on from, and the place with it: where the newest is damaged, an older.

    One that was asked for by its path is taken or refused.
    """
    from acmsao_cli.checkpoint.store import open_checkpoint, open_newest
    from acmsao_cli.engine.events import Notice

    if place.checkpoint is None:
        return place, None
    if place.explicit:
        return place, open_checkpoint(place.checkpoint)
    checkpoint, wrong = open_newest(place.folder.checkpoints)
    for message in wrong:
        listener(Notice(f"{message}; going on from an older one"))
    return replace(place, checkpoint=checkpoint.path if checkpoint else None), checkpoint


@dataclass(frozen=True)
class Training:
    """What is trained, where, and from which checkpoint: all but the settings that may change.

    `poisoned`: steps to be left out, as in a Run.
    """

    asked: RunConfig
    place: Place
    examples: tuple[Example, ...]
    sources: Sources
    checkpoint: Checkpoint | None
    stop: Stop
    listener: Listener
    poisoned: Mapping[int, str] = field(default_factory=dict)

    def to_the_end(self, planned: Decided) -> None:
        """Train; begin again, changed, where memory runs out in the first steps, and where a step
        has to be left out that was half applied.
        """
        from acmsao_cli.engine.loop import PoisonedStepError
        from acmsao_cli.engine.out_of_memory import let_go

        attempt, sample_first = self, True
        while setback := attempt.made(planned, sample_first):
            let_go()
            self.stop.begin_again()
            if isinstance(setback, PoisonedStepError):
                attempt = attempt.leaving_out(setback)
            else:
                planned = attempt.a_rung_lower(planned, setback.message)
            sample_first = False

    def a_rung_lower(self, planned: Decided, failure: str) -> Decided:
        """The run with a setting changed. Raises DoesNotFitError where none is left to change."""
        from acmsao_cli.engine.events import Notice
        from acmsao_cli.errors import DoesNotFitError
        from acmsao_cli.memory.advise import advice
        from acmsao_cli.memory.choose import decide
        from acmsao_cli.memory.ladder import climbed, next_rung, words_of

        config = planned.config
        recipe, on_gpu = config.recipe, planned.plan.device.type == "cuda"
        continued = self.checkpoint is not None
        rung = next_rung(config, planned.plan.num_blocks, on_gpu=on_gpu, continued=continued)
        if rung is None:
            raise DoesNotFitError(failure, hint=advice(recipe))
        self.listener(Notice(f"{failure}; beginning again with {words_of(recipe, rung)}"))
        return decide(climbed(self.asked, config, rung, failure))

    def leaving_out(self, setback: PoisonedStepError) -> Training:
        """Back at the newest checkpoint, or at the beginning, to pass over one step more.

        Raises DivergedError where there are too many since that checkpoint.
        """
        from acmsao_cli.checkpoint.store import open_newest
        from acmsao_cli.engine.events import Notice
        from acmsao_cli.engine.loop import TAMER
        from acmsao_cli.errors import DivergedError

        checkpoint, _ = open_newest(self.place.folder.checkpoints)
        back = checkpoint.step if checkpoint else 0
        poisoned = {**self.poisoned, setback.step: setback.what}
        message = f"the {setback.what} of step {setback.step} is not finite, and was half applied"
        if sum(step > back for step in poisoned) >= self.asked.recipe.training.nonfinite_steps:
            good = f"the last good checkpoint is at step {back}" if checkpoint else "none was made"
            raise DivergedError(f"{message}; {good}", hint=TAMER)
        self.listener(Notice(f"{message}; going back to step {back}, to leave it out"))
        return replace(self, checkpoint=checkpoint, poisoned=poisoned)

    def made(
        self, planned: Decided, sample_first: bool
    ) -> MemoryRanOutError | PoisonedStepError | None:
        """Train as planned; returns what happened if the run has to begin again."""
        from acmsao_cli.cli.describe import describe_start
        from acmsao_cli.engine.assemble import assemble, restore
        from acmsao_cli.engine.loop import PoisonedStepError
        from acmsao_cli.engine.loop import train as train_run
        from acmsao_cli.engine.measured import Expectation
        from acmsao_cli.engine.report import write_recipe
        from acmsao_cli.errors import DoesNotFitError, MemoryRanOutError
        from acmsao_cli.memory.advise import advice, out_of_memory_named

        config, folder = planned.config, self.place.folder
        start = describe_start(planned, self.place, len(self.examples))
        write_recipe(config, folder.recipe, start.facts)
        expectation = Expectation(start.predicted_bytes)
        try:
            with out_of_memory_named(config.recipe):
                prepared = assemble(config, self.examples, self.listener, self.sources)
                prepared.poisoned = self.poisoned
                if self.checkpoint:
                    restore(prepared, self.checkpoint, self.listener)
                train_run(prepared, folder, self.stop, self.listener, expectation, sample_first)
        except PoisonedStepError as setback:
            return setback
        except MemoryRanOutError as error:
            if error.early:
                return error
            again = f"the same command goes on from there; {advice(config.recipe)}"
            raise DoesNotFitError(error.message, hint=again) from None
        return None


def read_examples(
    config: RunConfig, listener: Listener, seen: Manifest | None = None
) -> tuple[RunConfig, Reading]:
    """The data, with what cannot be used left out or refused, and the configuration with its
    format decided; warnings are told. Pictures that were `seen` whole are not decoded again.
    """
    from acmsao_cli.data.reading import bad, listed, read, require
    from acmsao_cli.data.scan import decoded
    from acmsao_cli.engine.events import Notice, Working

    def progress(done: int, total: int) -> None:
        listener(Working("looking at the pictures", done, total))

    reading = decoded(read(config.recipe.data), seen, progress)
    require(reading, config.recipe.data)
    warnings = [problem for problem in reading.problems if problem.severity == "warning"]
    for problem in warnings[:WARNINGS_SHOWN]:
        listener(Notice(str(problem)))
    if len(warnings) > WARNINGS_SHOWN:
        more = len(warnings) - WARNINGS_SHOWN
        listener(Notice(f"{more} more warnings: `acmsao data check` tells all"))
    if errors := bad(reading):
        what = "1 bad item is" if len(errors) == 1 else f"{len(errors)} bad items are"
        listener(Notice(f"{what} left out:{listed(errors)}"))
    return config.with_data_format(reading.format), reading


def manifest_of(reading: Reading, known: Manifest, listener: Listener) -> dict[str, Item]:
    """What the examples are; pictures that were `known` are not read again."""
    from acmsao_cli.data.manifest import manifest
    from acmsao_cli.engine.events import Working

    def progress(done: int, total: int) -> None:
        listener(Working("hashing the pictures", done, total))

    return manifest(reading.examples, known, progress)


def decided(config: RunConfig, num_examples: int) -> Decided:
    """The run with every open setting decided for the memory there is, and its plan."""
    from acmsao_cli.data.stream import check_batch_size
    from acmsao_cli.memory.choose import decide

    check_batch_size(num_examples, config.recipe.training.batch_size)
    return decide(config)


def announce(planned: Decided, place: Place, num_examples: int, listener: Listener) -> Started:
    """Say what is about to be done, and what was decided.

    Raises DoesNotFitError where memory is missing, OutputError where space on the disk is.
    """
    from acmsao_cli.cli.describe import describe_start
    from acmsao_cli.memory.advise import require_fit
    from acmsao_cli.writing import require_space

    start = describe_start(planned, place, num_examples)
    listener(start)
    require_fit(planned.plan, planned.config)
    wanted = sum(planned.plan.disk.values()) - place.folder.checkpoint_bytes()
    require_space(place.folder.path, wanted, "this run")
    return start
