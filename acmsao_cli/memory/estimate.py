"""What a run would need, by closed forms in milliseconds: to search among settings with.

Weights, state and gradients are counted exactly, on the meta device and by the optimizer's own
allocator; activations by the family's formula. What is chosen so is traced before it is believed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from acmsao_cli.config.auto import (
    ALL_BLOCKS,
    BLOCKS,
    CHECKPOINTING,
    OFFLOADING,
    at_best,
    value_of,
    with_values,
)
from acmsao_cli.config.recipe import Recipe
from acmsao_cli.engine.compose import pipeline_of
from acmsao_cli.engine.streaming import WINDOW
from acmsao_cli.memory.cards import CONTEXT_BYTES, Card
from acmsao_cli.memory.planner import module_bytes, place_of
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Trainee
from acmsao_cli.optim.accounting import Placed, placed_bytes

# Of what is allocated: what the allocator takes beside it, and temporaries that no form counts.
SLACK: float = 1.01
WORKSPACE_BYTES: int = 64 << 20

# Models with less than this are traced for every setting.
SMALL_BYTES: int = 128 << 20


@dataclass(eq=False)
class Estimates:
    """What a recipe would need with one or another of its open settings."""

    recipe: Recipe
    card: Card | None
    trainee: Trainee = field(init=False)
    block_bytes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Build the model once, without weights."""
        recipe = with_values(at_best(self.recipe), {BLOCKS: ALL_BLOCKS})
        device, dtype = place_of(recipe, self.card)
        self._context = CONTEXT_BYTES if device.type == "cuda" else 0
        with torch.random.fork_rng(devices=[]):
            family = catalog.family(recipe.model.family)
            self.trainee = family.open(recipe, torch.device("meta"), dtype)
        self._weights = sum(map(module_bytes, self.trainee.modules().values()))
        groups = self.trainee.parameter_groups()
        self._shapes = Counter(tuple(p.shape) for g in groups for _, p in g.parameters)
        self._trained = [p.nbytes for g in groups for _, p in g.parameters]
        full = recipe.method.kind == "full"
        self.block_bytes = [
            sum(p.nbytes for p in block.parameters() if full or not p.requires_grad)
            for block in self.trainee.blocks()
        ]
        self._state: dict[str, Placed] = {}

    @property
    def is_small(self) -> bool:
        """Whether so little is at stake that a trace is as quick, and the forms are rough."""
        return self._weights < SMALL_BYTES

    def state(self, recipe: Recipe) -> Placed:
        """Bytes of the optimizer's state."""
        key = str(recipe.optimizer.storage)
        if key not in self._state:
            pipeline = pipeline_of(recipe.optimizer)
            found = [placed_bytes(pipeline, [shape]) * n for shape, n in self._shapes.items()]
            self._state[key] = sum(found, start=Placed(0, 0))
        return self._state[key]

    def needed_bytes(self, recipe: Recipe) -> int:
        """What is held against a bound, with every setting decided."""
        full, training = recipe.method.kind == "full", recipe.training
        resident = recipe.memory.resident_blocks
        streams = isinstance(resident, int)
        away = self.streamed_bytes(resident) if isinstance(resident, int) else 0
        state = 0 if streams and full else self.state(recipe).device
        at_once = training.planned_portions == 1
        kept = not (full and recipe.optimizer.fused_backward and at_once)
        gradients = sum(self._trained) if kept else max(self._trained)
        offloaded = bool(value_of(recipe, OFFLOADING))
        activations = self.trainee.activation_bytes(
            training.batch_size,
            checkpointed=bool(value_of(recipe, CHECKPOINTING)),
            offloaded=offloaded,
        )
        # Gradients come while activations go; but those of an earlier micro-batch are there from
        # the start, and offloaded activations are as many at the end.
        alternate = at_once and (full or not offloaded)
        high = max(activations, gradients) if alternate else activations + gradients
        workspace = min(WORKSPACE_BYTES, 8 * max(self._trained))
        tensors = self._weights - away + state + high + workspace
        return int(SLACK * tensors) + self._context

    def streamed_bytes(self, resident: int) -> int:
        """What is not on the device when so many blocks stay there."""
        away = max(len(self.block_bytes) - resident, 0)
        if not away:
            return 0
        mean = sum(self.block_bytes) / len(self.block_bytes)
        return max(0, int(away * mean) - WINDOW * max(self.block_bytes))

    def most_resident(self, recipe: Recipe, bound: float) -> int:
        """The largest number of resident blocks that is expected to fit; 0 if none is."""
        counts = range(len(self.block_bytes), -1, -1)
        return next(
            (
                count
                for count in counts
                if self.needed_bytes(with_values(recipe, {BLOCKS: count})) <= bound
            ),
            0,
        )
