"""From a configuration to the objects of a run: the only place where the two meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from acmsao_cli.checkpoint.resume import (
    OPTIMIZER,
    WEIGHTS,
    restore_weights,
    trained_tensors,
)
from acmsao_cli.checkpoint.store import Checkpoint
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import Example, Problem, Reading, name_of
from acmsao_cli.data.randomness import Draw
from acmsao_cli.data.reading import Remaining, bad
from acmsao_cli.data.stream import Pick, Stream, check_batch_size
from acmsao_cli.engine.continuation import LEFT_OUT, UNKNOWN, Sources, refuse_to_lose
from acmsao_cli.engine.events import Listener, Notice, Working
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.engine.progress import Progress, begin, saved_progress, steps_for
from acmsao_cli.engine.schedule import lr_factor
from acmsao_cli.engine.step import Core, build_core
from acmsao_cli.errors import CheckpointError, ConfigError, OptimizerError
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Batch


@dataclass
class Run:
    """A training that can be stepped, and how far it is.

    `examples` are those it really trains on, `left_out` what was found beside them. `poisoned`
    steps are left out without a try: by number, what of them was not finite when they were tried.
    """

    config: RunConfig
    core: Core
    examples: Sequence[Example]
    items: Sequence[Any]
    stream: Stream
    total_steps: int
    sources: Sources = UNKNOWN
    left_out: Sequence[Problem] = ()
    progress: Progress = field(init=False)
    poisoned: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """At the start; `restore` brings it further."""
        self.progress = begin(self.config.recipe.training)

    @property
    def step(self) -> int:
        """The optimizer steps that are done."""
        return self.progress.step

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights by name."""
        groups = self.core.trainee.parameter_groups()
        return {name: parameter for group in groups for name, parameter in group.parameters}

    def next_picks(self) -> list[tuple[Pick, ...]]:
        """The examples of the coming step, by micro-batch."""
        first, count = self.progress.micro_batches, self.progress.accumulation
        return [self.stream.batch(number) for number in range(first, first + count)]

    @property
    def next_lr_factor(self) -> float:
        """What the peak rate is multiplied by in the coming step."""
        recipe = self.config.recipe
        course = lr_factor(recipe.schedule, self.step, self.total_steps)
        return course * self.progress.lr_factor(recipe.training)

    def batch(self, picks: Sequence[Pick]) -> Batch:
        """A micro-batch of these examples: a function of the picks and the seed alone."""
        seed = self.config.recipe.training.seed
        return self.core.trainee.collate(
            [self.items[pick.index] for pick in picks], [Draw(seed, pick.ordinal) for pick in picks]
        )

    def left_out_by_name(self) -> dict[str, str]:
        """What is wrong with each item that is left out; another line may describe it rightly."""
        kept = set(map(name_of, self.examples))
        return {one.name: one.message for one in self.left_out if one.name and one.name not in kept}

    def state(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """All that is needed to go on from here: tensors by file, and a header."""
        optimizer = self.core.optimizer
        with self.core.at_home():
            weights = trained_tensors(self.parameters)
        files = {WEIGHTS: weights, OPTIMIZER: optimizer.state_tensors()}
        header = {
            "recipe": self.config.as_dict(),
            "before": dict(self.config.before),
            "optimizer": optimizer.state_header(),
            "progress": self.progress.as_dict(),
            **self.sources.as_header(self.core.trainee.device),
            LEFT_OUT: self.left_out_by_name(),
        }
        return files, header


def assemble(
    config: RunConfig,
    reading: Reading,
    listener: Listener,
    sources: Sources = UNKNOWN,
    *,
    continued: bool = False,
) -> Run:
    """Load the model, apply the method, encode the examples, build optimizer and stream.

    A run that saves checkpoints is told what they should say of its `sources`. Examples that cannot
    be encoded are left out if the recipe says so; never from a run that is `continued`.
    """
    recipe = config.recipe
    device = resolve_device(recipe.training.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    listener(Working("loading the model", 0, 1))
    trainee = catalog.family(recipe.model.family).open(recipe, device, dtype)
    sources.require_same_model()
    listener(Working("loading the model", 1, 1))

    def progress(done: int, total: int) -> None:
        listener(Working("encoding the examples", done, total))

    left = Remaining(reading, recipe.data)
    may_lose = not continued or recipe.data.on_bad == "error"  # which raises what is wrong
    unusable = left.leave_out if may_lose else refuse_to_lose
    items = trainee.encode(reading.examples, progress, unusable)
    examples = left.reading.examples
    check_batch_size(len(examples), recipe.training.batch_size)
    stream = Stream(
        [trainee.group_key(item) for item in items],
        recipe.training.batch_size,
        recipe.training.seed,
    )
    total_steps = count_steps(config, stream.batches_per_epoch)
    core = build_core(recipe, trainee, total_steps)
    return Run(config, core, examples, items, stream, total_steps, sources, bad(left.reading))


def count_steps(config: RunConfig, batches_per_epoch: int) -> int:
    """The optimizer steps of the run; an epoch's last step may reach into the next epoch."""
    training = config.recipe.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None  # the recipe has exactly one of the two
    steps = steps_for(training, training.epochs * batches_per_epoch)
    if config.recipe.schedule.warmup_steps > steps:
        raise ConfigError(
            f"`schedule.warmup_steps` is {config.recipe.schedule.warmup_steps}, but "
            f"{training.epochs} epochs of this data are only {steps} steps",
            hint=f"--set schedule.warmup_steps={steps // 10}",
        )
    if training.batch_schedule and training.batch_schedule[-1][0] >= steps:
        raise ConfigError(
            f"`training.batch_schedule` has {list(training.batch_schedule[-1])}, but "
            f"{training.epochs} epochs of this data are only {steps} steps",
            hint="drop that entry, or train longer",
        )
    return steps


def restore(run: Run, checkpoint: Checkpoint, listener: Listener) -> None:
    """Bring `run` to where `checkpoint` was written. Raises CheckpointError."""
    if checkpoint.step > run.total_steps:
        raise CheckpointError(
            f"{checkpoint.path} is at step {checkpoint.step}, past the {run.total_steps} asked for",
            hint="ask for more steps, or start another run with --resume never",
        )
    with run.core.at_home():
        restore_weights(checkpoint, run.parameters)
    optimizer, header = run.core.optimizer, checkpoint.header["optimizer"]
    seed, rates = optimizer.seed, [group["initial_lr"] for group in optimizer.param_groups]
    try:
        notices = optimizer.load_state(checkpoint.tensors(OPTIMIZER), header)
    except OptimizerError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: {error.message}", hint=error.hint
        ) from None
    # What was saved with the state is the saved recipe's, and this one may have been changed.
    optimizer.seed = seed
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate
    for notice in notices:
        listener(Notice(notice))
    run.progress = saved_progress(checkpoint.header["progress"], run.config.recipe.training)
