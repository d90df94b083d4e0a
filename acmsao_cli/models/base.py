"""What a model family must offer so that the engine can train it.

The engine knows nothing about pictures or tokens: it opens a `Trainee`, has the examples encoded
once, and then asks for batches and their losses. The same `Trainee` on the meta device, without
weights, is what the planner traces.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.data.base import Example
from acmsao_cli.data.randomness import Draw
from acmsao_cli.optim.in_rows import GradientInRows

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable weights that share a learning rate; None is the recipe's.

    Names are unique in the whole model.
    """

    parameters: tuple[tuple[str, nn.Parameter], ...]
    lr: float | None = None


@dataclass(frozen=True)
class Batch:
    """What one micro-batch needs, on the training device.

    `weight` is the number of units its loss sums over (pictures, or trained tokens); `inputs` is
    the family's own.
    """

    weight: float
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """What the model makes of a prompt: a picture or a text."""

    prompt: str
    image: Image.Image | None = None
    text: str | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """What exported files say about the training in their headers."""

    name: str
    steps: int
    num_examples: int
    learning_rate: float
    optimizer: str
    seed: int
    loss: float | None = None


@dataclass(frozen=True)
class Exported:
    """A file or folder that was written and loaded back: what it is, and how close it came back.

    `max_error` is the largest difference between a trained weight (after the cast to the file's
    dtype) and what the target library read from the file.
    """

    path: Path
    format: str
    used_by: str
    max_error: float = 0.0


@dataclass(frozen=True)
class Facts:
    """What can be said of a model before its weights are read.

    `parameters` counts weights by component ({"unet": 2567463684, ...}); `details` are words for a
    person ({"prediction": "epsilon", ...}).
    """

    family: str
    source: str
    path: Path
    kind: str
    parameters: Mapping[str, int]
    details: Mapping[str, str] = field(default_factory=dict)


Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """The progress callback of a caller that shows none."""


class Trainee(Protocol):
    """A model with its training method applied."""

    device: torch.device
    dtype: torch.dtype

    def parameter_groups(self) -> list[ParameterGroup]:
        """The trainable weights, named, in an order that never changes."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Every module that takes part in training's forward pass, by component name."""

    def blocks(self) -> Sequence[nn.Module]:
        """The parts that make up most of it, one after another as forward computes them."""

    def activation_bytes(self, batch_size: int, *, checkpointed: bool, offloaded: bool) -> int:
        """About what a step holds beside weights, gradients and state, by a closed form."""

    def at_rest(self) -> Iterable[nn.Module]:
        """What takes no part in training's forward pass, and rests in the host's memory."""

    @property
    def item_bytes(self) -> int:
        """Of one encoded example, at most."""

    def encode(self, examples: Sequence[Example], progress: Progress = silent) -> Sequence[Any]:
        """Items ready for `collate`, kept on the CPU; what is frozen is computed here, once."""

    def group_key(self, item: Any) -> Hashable:
        """Items of one batch must agree on this (the bucket of a picture)."""

    def collate(self, items: Sequence[Any], draws: Sequence[Draw]) -> Batch:
        """A batch of items, each with its own random numbers."""

    def meta_batch(self, batch_size: int) -> Batch:
        """A batch of the largest shape the recipe allows, without values, on this device."""

    def loss(self, batch: Batch) -> Tensor:
        """The summed loss over the batch's units: a 0-d fp32 tensor to run backward from."""

    def gradients_in_rows(self) -> Sequence[tuple[Tensor, GradientInRows]]:
        """What the last backward left to be computed while it is stepped, once."""

    def sample(self) -> Iterator[Sample]:
        """What the model makes of the recipe's prompts now, one at a time.

        Training state and random streams are as they were whenever a sample is handed out.
        """

    def export(self, directory: Path, facts: TrainingFacts) -> list[Exported]:
        """Write every output format of the recipe into `directory` and load each back.

        Raises OutputError where a file does not come back as it was written.
        """


def home_of(recipe: Recipe, device: torch.device) -> torch.device:
    """Where weights are read to: the host's memory if `memory.resident_blocks` sends some there."""
    streams = isinstance(recipe.memory.resident_blocks, int)
    return torch.device("cpu") if streams and device.type == "cuda" else device


class ModelFamily(Protocol):
    """A kind of model: how to look at one, how to open one, how to write one out as it is.

    `layouts` are the ways its models lie on disk, the usual one first.
    """

    name: str
    layouts: tuple[str, ...]

    def facts(self, recipe: Recipe) -> Facts:
        """Read configuration files and safetensors headers only. Raises ModelError."""

    def files(self, recipe: Recipe) -> Mapping[str, Path]:
        """All that decides what `open` gives, weights and configuration, by name in the model.

        A name is the same wherever the model lies. Raises ModelError.
        """

    def open(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Trainee:
        """Load the model and apply the recipe's method; no weights are read on the meta device.

        Where blocks are to be streamed (`home_of`) the weights stay in the host's memory, and the
        engine brings them to `device`. Raises ModelError.
        """

    def preview(self, recipe: Recipe, examples: Sequence[Example]) -> Iterable[str]:
        """For each example, a text that shows what training will see of it. Needs no weights."""

    def copy(self, source: str, directory: Path, layout: str) -> list[Path]:
        """Write the stored model `source` into `directory`, loaded back; returns what was written.

        Raises ModelError, and OutputError: nothing that is there is overwritten.
        """
