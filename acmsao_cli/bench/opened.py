"""A task that was opened: weights and losses."""

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


@torch.no_grad()
def evaluated(model: nn.Module, measure: Callable[[], float]) -> float:
    """A measure of the model as it is used: no dropout, no gradients."""
    model.eval()
    value = measure()
    model.train()
    return value
