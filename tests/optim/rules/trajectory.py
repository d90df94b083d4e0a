"""Several parameters along a course of gradients, ours and a paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from acmsao_cli.optim import ComposedOptimizer, Pipeline

Gradient = Callable[[list[Tensor], int], list[Tensor]]
SHAPES = [(5, 7), (9,), (), (4, 3, 3, 3)]


def draws(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def noise(weights: list[Tensor], step: int) -> list[Tensor]:
    """Gradients that do not care for the weights."""
    return draws([w.shape for w in weights], seed=100 + step)


def bowl(weights: list[Tensor], step: int) -> list[Tensor]:
    """Gradients that lead to a fixed place, with noise."""
    goals = draws([w.shape for w in weights], seed=99)
    return [
        w.double() - 3 * goal + 0.1 * g
        for w, goal, g in zip(weights, goals, noise(weights, step), strict=True)
    ]


def steepness(weights: Sequence[Tensor]) -> float:
    """How steep the bowl is there."""
    return sum(float(g.square().sum()) for g in bowl(list(weights), 0)) ** 0.5


def follow(
    pipeline: Pipeline,
    weights: Sequence[Tensor],
    gradient: Gradient,
    num_steps: int,
    **options: Any,
) -> tuple[list[Tensor], ComposedOptimizer]:
    """Return where our optimizer takes copies of the weights, in float64."""
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    named = [(f"w{number}", parameter) for number, parameter in enumerate(parameters)]
    optimizer = ComposedOptimizer(named, pipeline, **options)
    follow_with(optimizer, parameters, gradient, num_steps)
    return [p.detach().double() for p in parameters], optimizer


def follow_with(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    gradient: Gradient,
    num_steps: int,
) -> None:
    """Step any optimizer of these parameters."""
    for step in range(num_steps):
        grads = gradient([p.detach() for p in parameters], step)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.to(parameter.dtype)
        optimizer.step()


def deviation(
    found: Sequence[Tensor], expected: Sequence[Tensor], start: Sequence[Tensor]
) -> float:
    """Return the largest difference, relative to the longest way."""
    way = max(float((e - s).abs().max()) for e, s in zip(expected, start, strict=True))
    return max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)) / way
