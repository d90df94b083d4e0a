"""Prodigy as printed: Mishchenko & Defazio 2023 (arXiv:2306.06101), algorithm 4, in float64.

Sums have no factor (1 - sqrt(beta2)): it cancels in the fraction.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[list[Tensor], int], list[Tensor]]


def prodigy(
    weights: list[Tensor],
    gradient: Gradient,
    num_steps: int,
    *,
    inner: str = "adam",
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = math.inf,
    safeguard_warmup: bool = False,
) -> tuple[list[Tensor], float]:
    """Return the weights and d; `inner` is adam without bias correction, or lion."""
    start = [w.double() for w in weights]
    w = [x.clone() for x in start]
    m, v, s = ([torch.zeros_like(x) for x in start] for _ in range(3))
    d, largest, r, beta3 = d0, d0, 0.0, math.sqrt(betas[1])
    for step in range(num_steps):
        grads = [g.double() for g in gradient(w, step)]
        r, size = beta3 * r, 0.0
        for i, g in enumerate(grads):
            r += lr * d * d * float((g * (start[i] - w[i])).sum())
            s[i] = beta3 * s[i] + d * d * (1.0 if safeguard_warmup else lr) * g
            size += float(s[i].abs().sum())
            if inner == "adam":
                m[i] = betas[0] * m[i] + (1 - betas[0]) * d * g
                v[i] = betas[1] * v[i] + (1 - betas[1]) * d * d * g * g
                update = m[i] / (v[i].sqrt() + d * eps)
            else:
                update = torch.sign(betas[0] * m[i] + (1 - betas[0]) * d * g)
                m[i] = betas[1] * m[i] + (1 - betas[1]) * d * g
            w[i] = w[i] - lr * d * (update + weight_decay * w[i])
        if size > 0:
            estimate = d_coef * r / size
            largest = max(largest, estimate)
            d = min(largest, (max(d, estimate) if d == d0 else d) * growth_rate)
    return w, d
