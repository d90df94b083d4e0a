"""Attempts at a run: where one cannot go on as it began, the next begins with something changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from acmsao_cli.checkpoint.store import Checkpoint, open_newest
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import Problem, Reading, name_of
from acmsao_cli.data.manifest import left_out
from acmsao_cli.data.reading import bad
from acmsao_cli.engine.assemble import Run, assemble, restore
from acmsao_cli.engine.continuation import Sources, as_begun
from acmsao_cli.engine.deterministic import reproducible
from acmsao_cli.engine.events import Listener, Notice
from acmsao_cli.engine.folder import Place
from acmsao_cli.engine.loop import TAMER, PoisonedStepError
from acmsao_cli.engine.loop import train as train_run
from acmsao_cli.engine.measured import Expectation
from acmsao_cli.engine.out_of_memory import let_go
from acmsao_cli.engine.report import write_recipe
from acmsao_cli.engine.signals import Stop
from acmsao_cli.errors import DivergedError, DoesNotFitError, MemoryRanOutError
from acmsao_cli.identity import Manifest, digest
from acmsao_cli.launch.examples import tell_left_out
from acmsao_cli.launch.words import describe_start
from acmsao_cli.memory.advise import advice, out_of_memory_named
from acmsao_cli.memory.choose import Decided, decide
from acmsao_cli.memory.ladder import climbed, next_rung, words_of


@dataclass(frozen=True)
class Training:
    """What is trained, where, and from which checkpoint: all but the settings that may change.

    `poisoned`: steps to be left out, as in a Run.
    """

    asked: RunConfig
    place: Place
    reading: Reading
    data: Manifest
    sources: Sources
    checkpoint: Checkpoint | None
    stop: Stop
    listener: Listener
    poisoned: Mapping[int, str] = field(default_factory=dict)

    def to_the_end(self, planned: Decided) -> None:
        """Train; begin again, changed, where memory runs out in the first steps, and where a step
        has to be left out that was half applied.
        """
        attempt, sample_first = self, True
        while setback := attempt.made(planned, sample_first):
            let_go()
            self.stop.heed()
            if isinstance(setback, PoisonedStepError):
                attempt = attempt.leaving_out(setback)
            else:
                planned = attempt.a_rung_lower(planned, setback.message)
            sample_first = False

    def a_rung_lower(self, planned: Decided, failure: str) -> Decided:
        """The run with a setting changed. Raises DoesNotFitError where none is left to change."""
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
        config, folder = planned.config, self.place.folder
        start = describe_start(planned, self.place, len(self.reading.examples))
        write_recipe(config, folder.recipe, start.facts)
        expectation = Expectation(start.predicted_bytes)
        try:
            with out_of_memory_named(config.recipe), reproducible(config.recipe.training):
                reading = as_begun(self.reading, self.checkpoint)
                continued = self.checkpoint is not None
                prepared = assemble(
                    config, reading, self.listener, self.sources, continued=continued
                )
                self.note_lost(prepared, prepared.left_out[len(bad(reading)) :])
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

    def note_lost(self, run: Run, lost: Sequence[Problem]) -> None:
        """Tell what turned out to be bad while the examples were encoded: the run's data is what is
        left.
        """
        tell_left_out(lost, self.listener)
        kept = {name: self.data[name] for name in map(name_of, run.examples)}
        run.sources = replace(run.sources, data=digest(kept))
        self.place.folder.keep_data(kept, left_out(run.left_out, run.config.recipe.data.source))
