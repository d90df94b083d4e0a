"""Nested averages, in float64: the gradient is normalised, then averaged."""

import torch
from torch import Tensor


def nested_adam(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    inside: bool = True,
) -> Tensor:
    """EMA_b1(g / sqrt(EMA_b2(g^2) + eps)), both averages corrected, as explicit sums."""
    w = weights.double().clone()
    squares: list[Tensor] = []
    normal: list[Tensor] = []
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        squares.append(g**2)
        v = _average(squares, betas[1]) / (1 - betas[1] ** t)
        normal.append(g / (v + eps).sqrt() if inside else g / (v.sqrt() + eps))
        w = w - lr * _average(normal, betas[0]) / (1 - betas[0] ** t)
    return w


def _average(values: list[Tensor], beta: float) -> Tensor:
    last = len(values) - 1
    terms = [(1 - beta) * beta ** (last - j) * x for j, x in enumerate(values)]
    return torch.stack(terms).sum(0)
