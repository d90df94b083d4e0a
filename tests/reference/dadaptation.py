"""D-adapted Adam as printed: Defazio & Mishchenko 2023 (arXiv:2301.07733), algorithm 5, float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[list[Tensor], int], list[Tensor]]


def dadapt_adam(
    weights: list[Tensor],
    gradient: Gradient,
    num_steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = math.inf,
) -> tuple[list[Tensor], float]:
    """Return the weights and d."""
    w = [x.double() for x in weights]
    m, v, s = ([torch.zeros_like(x) for x in w] for _ in range(3))
    d, r, root = d0, 0.0, math.sqrt(betas[1])
    for step in range(num_steps):
        product, size = 0.0, 0.0
        for i, grad in enumerate(gradient(w, step)):
            g = grad.double()
            product += lr * d * float((g * s[i] / (v[i].sqrt() + eps)).sum())
            s[i] = root * s[i] + (1 - root) * lr * d * g
            size += float(s[i].abs().sum())
            m[i] = betas[0] * m[i] + (1 - betas[0]) * lr * d * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            w[i] = w[i] - lr * d * weight_decay * w[i] - m[i] / (v[i].sqrt() + eps)
        r = root * r + (1 - root) * product
        if size > 0:
            d = max(d, min(r / ((1 - root) * size), growth_rate * d))
    return w, d
