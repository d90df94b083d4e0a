"""A pipeline's own step under circumstances that no optimizer makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acmsao_cli.optim import Pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context


def stepped(
    pipeline: Pipeline,
    grads: Sequence[Tensor],
    *,
    as_tensors: bool = False,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> Tensor:
    """Weights from ones on, (batch, rows, cols) as the gradients are; those come `grad_scale` times
    larger. With `as_tensors` the step is a tensor, as under compile.
    """
    weights = torch.ones_like(grads[0])
    batch, rows, cols = weights.shape
    state = pipeline.allocate(batch, rows, cols, weights.device)
    numbers = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1)
    for step, grad in enumerate(grads, start=1):
        count: Any = torch.tensor(float(step), dtype=torch.float64) if as_tensors else step
        noise = Noise(numbers, hash_numbers(0, step))
        ctx = Context(
            count, step == 1, lr, weight_decay, weights, rows, cols, grad_scale=grad_scale
        )
        pipeline.step(weights, grad * grad_scale, state, ctx, noise)
    return weights
