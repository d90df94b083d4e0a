"""The same gradients for a pipeline of ours, a plain reference and another library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from acmsao_cli.optim import ComposedOptimizer, Pipeline

SHAPES = [(5, 7), (9,), (), (4, 3, 3, 3)]


def stream(shape: tuple[int, ...], count: int = 12) -> tuple[Tensor, list[Tensor]]:
    """Return weights and gradients, all standard normal."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(shape, generator=generator) for _ in range(count + 1)]
    return draws[0], draws[1:]


def ours(pipeline: Pipeline, shape: tuple[int, ...], count: int = 12, **options: float) -> Tensor:
    """Return the weights in which the stream ends."""
    weights, grads = stream(shape, count)
    parameter = torch.nn.Parameter(weights)
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, **options)
    return _run(parameter, optimizer, grads)


def theirs(
    make: Callable[[list[torch.nn.Parameter]], Any],
    shape: tuple[int, ...],
    count: int = 12,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return the same of another library's optimizer, in float64 where it can."""
    weights, grads = stream(shape, count)
    parameter = torch.nn.Parameter(weights.to(dtype))
    return _run(parameter, make([parameter]), [grad.to(dtype) for grad in grads])


def relative_error(found: Tensor, expected: Tensor, shape: tuple[int, ...]) -> float:
    """Return the largest difference, relative to the largest way any weight went."""
    start, _ = stream(shape)
    return float((found - expected).abs().max() / (expected - start).abs().max())


def _run(parameter: torch.nn.Parameter, optimizer: Any, grads: Iterable[Tensor]) -> Tensor:
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach().double()
