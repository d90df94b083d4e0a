"""What is trained: a task, and a task that was opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Opened:
    """A task with its weights: losses are means, over what the task counts."""

    parameters: list[tuple[str, nn.Parameter]]
    training_loss: Callable[[], Tensor]  # of the next batch
    validation_loss: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """`open` takes a seed; `digest` tells apart what has one name and is not the same."""

    name: str
    about: str
    unit: str
    steps: int
    open: Callable[[int], Opened]
    digest: str = ""

    @property
    def identity(self) -> str:
        """What its runs are kept under."""
        return f"{self.name}@{self.digest}" if self.digest else self.name


@torch.no_grad()
def evaluated(model: nn.Module, measure: Callable[[], float]) -> float:
    """A measure of the model as it is used: no dropout, no gradients."""
    model.eval()
    value = measure()
    model.train()
    return value
