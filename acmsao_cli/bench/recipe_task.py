"""Any recipe as a task: its model, method, data and batch size; every tenth example is held out."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from acmsao_cli import identity
from acmsao_cli.bench.opened import Opened, evaluated
from acmsao_cli.bench.tasks import Task
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.manifest import manifest
from acmsao_cli.data.randomness import Draw
from acmsao_cli.data.reading import read, require
from acmsao_cli.data.stream import Pick, Stream, check_batch_size
from acmsao_cli.engine.assemble import count_steps
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.errors import ConfigError
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Batch, Trainee

TENTH: Final = 10
VALIDATION_SEED: Final = 20_000
# What the contest decides, or what comes after training: no other task follows from it.
NOT_OF_THE_TASK: Final = (
    *("about", "optimizer", "schedule", "memory", "checkpoint", "output", "samples", "training"),
)


def recipe_task(config: RunConfig) -> Task:
    """The task of a recipe. Raises DataError where its data cannot be used."""
    recipe = config.recipe
    examples = require(read(recipe.data), recipe.data)
    shown = len(examples) - len(examples[::TENTH])
    rows = rows_of(config)
    check_batch_size(shown, rows)
    return Task(
        config.name,
        f"the recipe {config.name} at batch {rows}",
        f"loss of {len(examples[::TENTH])} held-out examples",
        count_steps(config, -(-shown // recipe.training.batch_size)),
        partial(open_recipe, config),
        digest(config, identity.digest(manifest(examples))),
    )


def rows_of(config: RunConfig) -> int:
    """Examples of one step."""
    training = config.recipe.training
    return training.batch_size * training.accumulation


def digest(config: RunConfig, data: str) -> str:
    """Tells apart recipes of one name that make different tasks, and data that changed."""
    said = {key: value for key, value in config.as_dict().items() if key not in NOT_OF_THE_TASK}
    text = json.dumps([said, rows_of(config), data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Loaded:
    """A trainee with its encoded examples."""

    trainee: Trainee
    items: Sequence[Any]

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained weights by name. Raises ConfigError where some have a rate of their own."""
        groups = self.trainee.parameter_groups()
        if any(group.lr is not None for group in groups):
            raise ConfigError(
                "the recipe gives some weights a learning rate of their own, and rates are tuned",
                hint="leave it out of the recipe that is a task",
            )
        return [pair for group in groups for pair in group.parameters]

    def loss(self, batch: Batch) -> Tensor:
        """Mean over what the family counts."""
        return self.trainee.loss(batch) / batch.weight

    def evaluate(self, measure: Any) -> float:
        """`measure` with every module as in use."""
        return evaluated(nn.ModuleList(self.trainee.modules().values()), measure)


def load(config: RunConfig, seed: int) -> Loaded:
    """The recipe's model with its method applied by `seed`, and its data."""
    training = config.recipe.training.model_copy(update={"seed": seed})
    recipe = config.recipe.model_copy(update={"training": training})
    device = resolve_device(training.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    trainee = catalog.family(recipe.model.family).open(recipe, device, dtype)
    return Loaded(trainee, trainee.encode(require(read(recipe.data), recipe.data)))


def open_recipe(config: RunConfig, seed: int) -> Opened:
    """Batches in the order that `acmsao train` would take the shown examples in."""
    loaded = load(config, seed)
    held_out = loaded.items[::TENTH]
    shown = [item for number, item in enumerate(loaded.items) if number % TENTH]
    stream, numbers = _stream(loaded, shown, rows_of(config), seed), itertools.count()

    def training_loss() -> Tensor:
        picks = stream.batch(next(numbers))
        torch.manual_seed(seed + picks[0].ordinal)  # of dropout
        return loaded.loss(_collate(loaded, shown, picks, seed))

    fixed = _stream(loaded, held_out, rows_of(config), VALIDATION_SEED)

    def validation_loss() -> float:
        batches = list(_epoch(loaded, held_out, fixed))
        total = loaded.evaluate(lambda: sum(float(loaded.trainee.loss(b)) for b in batches))
        return total / sum(batch.weight for batch in batches)

    return Opened(loaded.parameters, training_loss, validation_loss)


def _stream(loaded: Loaded, items: Sequence[Any], rows: int, seed: int) -> Stream:
    return Stream([loaded.trainee.group_key(item) for item in items], rows, seed)


def _collate(loaded: Loaded, items: Sequence[Any], picks: Sequence[Pick], seed: int) -> Batch:
    draws = [Draw(seed, pick.ordinal) for pick in picks]
    return loaded.trainee.collate([items[pick.index] for pick in picks], draws)


def _epoch(loaded: Loaded, items: Sequence[Any], stream: Stream) -> Iterator[Batch]:
    for number in range(stream.batches_per_epoch):
        yield _collate(loaded, items, stream.batch(number), VALIDATION_SEED)
