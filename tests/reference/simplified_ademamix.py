"""Simplified AdEMAMix: Morwani et al. 2025 (arXiv:2502.02431), in float64."""

import math

import torch
from torch import Tensor


def simplified_ademamix(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.99, 0.95),
    alpha: float = 0.0,
    eps: float = 1e-8,
    warmup: int = 0,
    start_beta: float = 0.9,
    corrected: bool = False,
) -> Tensor:
    """m <- b1 m + g, and a step along (m + alpha g) / (sqrt(v / weight of v) + eps)."""
    w = weights.double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    weight = 0.0
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        b1 = warmed_up(start_beta, betas[0], t, warmup)
        m = b1 * m + g
        weight = b1 * weight + 1
        v = betas[1] * v + (1 - betas[1]) * g**2
        update = (m + alpha * g) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        w = w - lr * (update / weight if corrected else update)
    return w


def warmed_up(start: float, stop: float, t: int, warmup: int) -> float:
    """A decay rate, by its half-life: AdEMAMix (arXiv:2409.03137), equation for beta3."""
    if t >= warmup:
        return stop
    share = t / warmup
    a, b = math.log(start), math.log(stop)
    return math.exp(a * b / ((1 - share) * b + share * a))
