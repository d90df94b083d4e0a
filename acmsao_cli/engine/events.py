"""What a run tells whoever watches it: the terminal, a batch script, a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Started:
    """What is about to be done, in words and numbers; `facts` is shown line by line."""

    name: str
    folder: Path
    facts: Mapping[str, str]
    predicted_bytes: int
    resumed_from: int | None = None


@dataclass(frozen=True)
class Working:
    """Progress of something that is not a training step: loading, encoding, sampling, exporting."""

    task: str
    done: int
    total: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    `memory_bytes` is the peak of the steps since samples were last drawn: allocated (GPU), resident
    with all that the process holds (CPU).

    Where the gradient noise is measured: running means of its scale (in examples), of the variance
    of one example's gradient, and of the squared norm of the true gradient.

    `left_out`: what was not finite, so that no weight was changed; then there is no loss.
    """

    step: int
    total_steps: int
    loss: float | None
    lr: float
    gradient_norm: float | None
    units: float
    seconds: float
    memory_bytes: int
    accumulation: int = 1
    noise_scale: float | None = None
    gradient_variance: float | None = None
    signal: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class MemoryMeasured:
    """What the first steps of a process held at most, beside what the plan predicted.

    `measured_bytes`: allocated (GPU), or resident beyond what was before the model was loaded
    (CPU); `reserved_bytes` by the allocator (GPU). `error` is measured / predicted - 1.
    `batch_is_largest`: the step was as large as the planned one. `comparable`: there is enough to
    measure that `error` is one of the plan.
    """

    step: int
    predicted_bytes: int
    measured_bytes: int
    reserved_bytes: int | None
    error: float
    batch_is_largest: bool
    comparable: bool


@dataclass(frozen=True)
class Replayed:
    """A step was taken again: whether it came out as it was then, when its loss was `loss`.

    `weights_compared`: there was a checkpoint to compare all weights and state with.
    """

    step: int
    loss: float | None
    same: bool
    weights_compared: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint or sample file now exists."""

    kind: str
    path: Path
    step: int


@dataclass(frozen=True)
class Notice:
    """Something the user should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run is done; `summary` is what summary.json holds."""

    folder: Path
    summary: Mapping[str, Any]


Event = Started | Working | StepDone | MemoryMeasured | Replayed | Saved | Notice | Finished
Listener = Callable[[Event], None]
