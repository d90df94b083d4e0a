"""How far a run is, and how large its next step: what a checkpoint adds to weights and state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.engine.noise import Noise

# The learning rate goes with this power of the batch (linear: AdaBatch, arXiv:1712.02029).
POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class Progress:
    """What is done, and what that decides about the coming step.

    `micro_batches` are drawn so far, so the coming step begins with the one of that number;
    `accumulation` is how many it takes. `gradient_norm` is the last step's. `steps_above` counts
    the latest steps in a row at which the noise scale exceeded the batch, `left_out` the latest
    steps in a row that changed no weight, since a loss or gradient was not finite.
    """

    accumulation: int
    step: int = 0
    micro_batches: int = 0
    gradient_norm: float | None = None
    noise: Noise = field(default_factory=Noise)
    steps_above: int = 0
    left_out: int = 0

    def after_leaving_out(self, training: TrainingSection) -> Progress:
        """Where the run is after a step that changed nothing: its examples are passed."""
        return replace(
            self,
            accumulation=self._grown(training, 0),
            step=self.step + 1,
            micro_batches=self.micro_batches + self.accumulation,
            left_out=self.left_out + 1,
        )

    def after(
        self, training: TrainingSection, norm: float | None, noise: Noise, examples: int
    ) -> Progress:
        """Where the run is after one step more, of `examples`, with this gradient norm."""
        above = self.steps_above + 1 if noise.exceeds(examples) else 0
        grown = self._grown(training, above)
        return Progress(
            accumulation=grown,
            step=self.step + 1,
            micro_batches=self.micro_batches + self.accumulation,
            gradient_norm=norm,
            noise=noise,
            steps_above=above if grown == self.accumulation else 0,
        )

    def _grown(self, training: TrainingSection, above: int) -> int:
        if training.adaptive_batch is None:
            return scheduled_accumulation(training, self.step + 1)
        if above < training.adaptive_patience:
            return self.accumulation
        return min(2 * self.accumulation, training.adaptive_batch)

    def lr_factor(self, training: TrainingSection) -> float:
        """What the grown batch multiplies the learning rate by."""
        return math.pow(self.accumulation / training.accumulation, POWERS[training.batch_lr])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `saved_progress` makes the same again."""
        return asdict(self)


def begin(training: TrainingSection) -> Progress:
    """The start of a run."""
    return Progress(training.accumulation)


def saved_progress(values: Mapping[str, Any], training: TrainingSection) -> Progress:
    """What `as_dict` gave, but that the next step is as large as `training` now has it."""
    saved = Progress(**{**values, "noise": Noise(**values["noise"])})
    if training.adaptive_batch is None:
        return replace(saved, accumulation=scheduled_accumulation(training, saved.step))
    grown = max(saved.accumulation, training.accumulation)
    return replace(saved, accumulation=min(grown, training.adaptive_batch))


def scheduled_accumulation(training: TrainingSection, step: int) -> int:
    """The accumulation that `batch_schedule` asks for after `step` steps."""
    reached = [count for start, count in training.batch_schedule if start <= step]
    return reached[-1] if reached else training.accumulation


def steps_for(training: TrainingSection, micro_batches: int) -> int:
    """How many steps take at least `micro_batches`, under the schedule."""
    steps, left, count = 0, micro_batches, training.accumulation
    for start, grown in training.batch_schedule:
        if left <= (start - steps) * count:
            break
        left -= (start - steps) * count
        steps, count = start, grown
    return steps + math.ceil(left / count)
