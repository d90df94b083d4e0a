"""Stochastic gradient descent with a sum of gradients as momentum, in float64."""

import torch
from torch import Tensor


def sgd(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    beta: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Sutskever et al. 2013, with the learning rate outside of the sum."""
    w = weights.double().clone()
    m = torch.zeros_like(w)
    for t, grad in enumerate(grads):
        g = grad.double()
        m = beta * m + (g if t == 0 else (1 - dampening) * g)
        w = w - lr * (g + beta * m if nesterov else m)
    return w


def warm_adamw(
    weights: Tensor, grads: list[Tensor], *, lr: float, steps: int, scale: float
) -> Tensor:
    """AdamW (b1 = 0.9, b2 = 0.999, eps = 1e-8) whose first updates are scaled gradients."""
    w = weights.double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        adam = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w - lr * (scale * g if t <= steps else adam)
    return w
