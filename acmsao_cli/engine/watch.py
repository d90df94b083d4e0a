"""Looking at a run's steps for what its user should know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from acmsao_cli.engine import malloc
from acmsao_cli.engine.assemble import Run
from acmsao_cli.engine.events import Listener, MemoryMeasured, Notice, StepDone
from acmsao_cli.engine.measured import (
    COMPARABLE,
    COMPARED_STEP,
    Expectation,
    forget_peak,
    is_largest,
    peak_reserved,
    share_in_use,
    spilled,
    warning,
)
from acmsao_cli.engine.symptoms import (
    LOOK_EVERY,
    REMEMBERED,
    STANDSTILL,
    Excerpt,
    excerpt,
    spike,
)
from acmsao_cli.models.base import Batch


class Watch:
    """Looks at the steps of this process, and tells each finding once.

    Make it right before the first step: it begins the peak anew.
    """

    def __init__(
        self,
        run: Run,
        expectation: Expectation | None,
        listener: Listener,
        losses: Sequence[float] = (),
    ) -> None:
        """`losses` are those of the steps before."""
        training, trainee = run.config.recipe.training, run.core.trainee
        self.training, self.device = training, trainee.device
        self.expectation, self.listener = expectation, listener
        self.planned = trainee.meta_batch(training.batch_size) if expectation else None
        self.seconds: list[float] = []
        self.losses = list(losses)
        self.excerpt: Excerpt | None = None
        self.says_spilled = self.says_unmoved = False
        if expectation:  # a plan is about what is used, not what an allocator keeps
            malloc.give_back_at_once()
        self.resets = forget_peak(self.device)

    @property
    def steps_taken(self) -> int:
        """Steps that this process has taken."""
        return len(self.seconds)

    @property
    def is_comparing(self) -> bool:
        """Whether the memory of the coming step is still to be held against the plan's."""
        return self.expectation is not None and self.steps_taken < COMPARED_STEP

    def before(self, run: Run) -> None:
        """Look at weights that the coming step may not move."""
        due = (run.step + 1) % LOOK_EVERY == 0 and run.next_lr_factor > 0
        self.excerpt = excerpt(run.core) if due else None

    def after(self, done: StepDone, batches: Sequence[Batch]) -> Mapping[str, Any]:
        """Look at what is so after a step; returns what its line of metrics holds besides."""
        self.seconds.append(done.seconds / done.accumulation)
        self.look_for_spilling()
        return {
            **self.look_for_spike(done),
            **self.look_for_standstill(done),
            **self.look_at_memory(done, batches),
        }

    def look_for_spike(self, done: StepDone) -> Mapping[str, Any]:
        """Whether the loss stands out from those before it, and by how much."""
        if done.loss is None:
            return {}
        times = spike(self.losses, done.loss)
        self.losses = [*self.losses[-REMEMBERED:], done.loss]
        if times is None:
            return {}
        self.listener(
            Notice(
                f"loss spike at step {done.step}: {done.loss:.4g} is {times:.1f} times the usual; "
                "if there are more, lower optimizer.lr or training.clip_norm"
            )
        )
        return {"spike": round(times, 3)}

    def look_for_standstill(self, done: StepDone) -> Mapping[str, Any]:
        """Which share of bf16 weights the step left as they were, where it was looked at."""
        if self.excerpt is None:
            return {}
        unmoved, self.excerpt = self.excerpt.unmoved(), None
        if unmoved > STANDSTILL and not self.says_unmoved:
            self.says_unmoved = True
            self.listener(
                Notice(
                    f"{100 * unmoved:.0f} % of the bf16 weights did not move in step {done.step}: "
                    "updates round to nothing; optimizer.rounding=stochastic keeps them in the mean"
                )
            )
        return {"unmoved": round(unmoved, 4)}

    def look_at_memory(self, done: StepDone, batches: Sequence[Batch]) -> Mapping[str, Any]:
        """What the first steps held, beside the plan."""
        taken = self.steps_taken
        last = done.step == done.total_steps and taken < COMPARED_STEP
        if taken != COMPARED_STEP and not last:
            return {}
        measured = self.compare(done, batches)
        if measured is None:
            return {}
        malloc.keep_for_later()
        self.listener(measured)
        text = warning(measured)
        if text:
            self.listener(Notice(text))
        return {"memory": dataclasses.asdict(measured)}

    def compare(self, done: StepDone, batches: Sequence[Batch]) -> MemoryMeasured | None:
        """The peak so far beside the plan's; None without a plan."""
        if self.expectation is None or self.planned is None:
            return None
        on_gpu, predicted = self.device.type == "cuda", self.expectation.peak_bytes
        held_before = 0 if on_gpu else self.expectation.resident_before
        measured = max(0, done.memory_bytes - held_before)
        return MemoryMeasured(
            step=done.step,
            predicted_bytes=predicted,
            measured_bytes=measured,
            reserved_bytes=peak_reserved(self.device),
            error=round(measured / predicted - 1, 4),
            batch_is_largest=is_largest(batches, self.planned, self.training),
            comparable=self.resets and predicted >= COMPARABLE[self.device.type],
        )

    def look_for_spilling(self) -> None:
        """Tell of it when it is first seen. Longer steps of more portions are not slower ones."""
        if self.says_spilled or not spilled(self.seconds, share_in_use(self.device)):
            return
        self.says_spilled = True
        self.listener(
            Notice(
                "the steps have become more than five times as slow while the card is full: the "
                "driver seems to move GPU memory to the host; take a smaller training.batch_size "
                "or training.gradient_checkpointing=true (`acmsao plan` says what each saves)"
            )
        )
