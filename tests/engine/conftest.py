"""A trainee small enough to follow by hand: points, noise, dropout."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acmsao_cli.checkpoint.store import Checkpoint, newest_checkpoint, open_checkpoint
from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.data.base import TextExample
from acmsao_cli.data.randomness import Draw
from acmsao_cli.data.stream import Stream
from acmsao_cli.engine.assemble import Run, restore
from acmsao_cli.engine.folder import RunFolder
from acmsao_cli.engine.step import build_core
from acmsao_cli.models.base import (
    Batch,
    Exported,
    ParameterGroup,
    Sample,
    TrainingFacts,
    silent,
)

EXAMPLES = 10


class ToyTrainee:
    """Regression with noise from the draw and dropout from torch's global generator."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.device, self.dtype = torch.device(device), dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Linear(6, 8), nn.Dropout(0.25), nn.Tanh(), nn.Linear(8, 3)
            ).to(dtype)
        self.net.to(self.device)
        self.poison_at: int | None = None

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(tuple(self.net.named_parameters()))]

    def modules(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}

    def blocks(self) -> Sequence[nn.Module]:
        return ()

    def activation_bytes(self, batch_size: int, *, checkpointed: bool, offloaded: bool) -> int:
        return 100 * batch_size

    def at_rest(self) -> Sequence[nn.Module]:
        return ()

    @property
    def item_bytes(self) -> int:
        return 36

    def encode(self, examples: Sequence[Any], progress: Any = silent) -> Sequence[Any]:
        generator = torch.Generator().manual_seed(2)
        return [
            (torch.randn(6, generator=generator), torch.randn(3, generator=generator))
            for _ in examples
        ]

    def group_key(self, item: Any) -> Hashable:
        return None

    def collate(self, items: Sequence[Any], draws: Sequence[Draw]) -> Batch:
        inputs = torch.stack(
            [x + 0.1 * d.normal("noise", (6,)) for (x, _), d in zip(items, draws, strict=True)]
        )
        targets = torch.stack([y for _, y in items])
        if self.poison_at is not None and any(d.ordinal == self.poison_at for d in draws):
            inputs = inputs * float("nan")
        values = {"x": inputs.to(self.dtype), "y": targets.to(self.dtype)}
        return Batch(weight=len(items), inputs=values)

    def meta_batch(self, batch_size: int) -> Batch:
        def empty(width: int) -> Tensor:
            return torch.empty(batch_size, width, dtype=self.dtype, device=self.device)

        return Batch(weight=batch_size, inputs={"x": empty(6), "y": empty(3)})

    def loss(self, batch: Batch) -> Tensor:
        error = self.net(batch.inputs["x"]) - batch.inputs["y"]
        return error.float().square().mean(1).sum()

    def gradients_in_rows(self) -> Sequence[Any]:
        return ()

    def sample(self) -> Iterable[Sample]:
        with torch.no_grad():
            value = self.net(torch.ones(1, 6, dtype=self.dtype)).sum()
        yield Sample("one", text=f"{float(value):.4f}")

    def export(self, directory: Path, facts: TrainingFacts) -> list[Exported]:
        path = directory / "toy.safetensors"
        save_file({k: v.detach().contiguous() for k, v in self.net.named_parameters()}, path)
        return [Exported(path, "toy", "tests")]


def toy_config(**changes: Any) -> RunConfig:
    """A run configuration; `changes` maps section names to values that differ from the defaults."""
    values: dict[str, Any] = {
        "model": {"family": "causal_lm", "source": "toy"},
        "method": {"kind": "full"},
        "data": {"source": "toy"},
        "optimizer": {"lr": 0.05},
        "training": {"steps": 8, "batch_size": 4, "seed": 3},
        "checkpoint": {"every": 3, "keep": 2},
        "samples": {"prompts": ["one"]},
    }
    for section, entries in changes.items():
        values[section] = values.get(section, {}) | entries
    return RunConfig("toy", CausalLmRecipe.model_validate(values), origins={})


def toy_run(
    config: RunConfig | None = None,
    dtype: torch.dtype = torch.float32,
    kind: type[ToyTrainee] = ToyTrainee,
) -> Run:
    """An assembled run of the toy trainee."""
    config = config or toy_config()
    recipe = config.recipe
    trainee = kind(dtype)
    examples = [TextExample(f"line {i}", text="x") for i in range(EXAMPLES)]
    items = trainee.encode(examples)
    stream = Stream([None] * EXAMPLES, recipe.training.batch_size, recipe.training.seed)
    assert recipe.training.steps is not None
    core = build_core(recipe, trainee)
    return Run(config, core, examples, items, stream, recipe.training.steps)


class LinearTrainee(ToyTrainee):
    """A loss whose gradient is the mean of what was drawn: TRUTH plus noise of known variance.

    The gradient does not depend on the weights, so every step measures the same.
    """

    SIZE = 30
    TRUTH = torch.linspace(0, 1, SIZE)
    DEVIATION = 2.0

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        super().__init__(dtype, device)
        self.net = nn.Sequential(nn.Linear(self.SIZE, 1, bias=False))

    def collate(self, items: Sequence[Any], draws: Sequence[Draw]) -> Batch:
        noise = torch.stack([draw.normal("noise", (self.SIZE,)) for draw in draws])
        return Batch(weight=len(items), inputs={"x": self.TRUTH + self.DEVIATION * noise})

    def loss(self, batch: Batch) -> Tensor:
        total: Tensor = self.net(batch.inputs["x"]).sum()
        return total

    def sample(self) -> Iterable[Sample]:
        return ()


@pytest.fixture
def linear_trainee() -> type[LinearTrainee]:
    """A trainee with a known noise scale."""
    return LinearTrainee


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """Builds toy configurations."""
    return toy_config


def newest(folder: RunFolder) -> Checkpoint:
    """The run's newest checkpoint, opened; it has to be there."""
    path = newest_checkpoint(folder.checkpoints)
    assert path is not None
    return open_checkpoint(path)


@pytest.fixture(name="newest")
def newest_of() -> Callable[[RunFolder], Checkpoint]:
    """Opens a run's newest checkpoint."""
    return newest


@pytest.fixture
def gone_on() -> Callable[[RunConfig, RunFolder], Run]:
    """Assembles a toy run anew, as far as its newest checkpoint."""

    def resumed(config: RunConfig, folder: RunFolder) -> Run:
        run = toy_run(config)
        restore(run, newest(folder), lambda event: None)
        return run

    return resumed


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Builds toy runs."""
    return toy_run
