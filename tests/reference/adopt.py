"""ADOPT as printed: Taniguchi et al. 2024 (arXiv:2411.02853), algorithm 2, in float64."""

import math

import torch
from torch import Tensor


def adopt(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    denominator: str = "max",
    clip: bool = True,
) -> Tensor:
    """`grads[0]` is the paper's g_0; "add" is sqrt(v) + eps instead of max(sqrt(v), eps)."""
    w = weights.double().clone()
    m = torch.zeros_like(w)
    v = grads[0].double() ** 2
    for t, grad in enumerate(grads[1:], start=1):
        g = grad.double()
        root = v.sqrt()
        n = g / (root.clamp(min=eps) if denominator == "max" else root + eps)
        if clip:
            n = n.clamp(-(t**0.25), t**0.25)
        m = betas[0] * m + (1 - betas[0]) * n
        w = w - lr * m
        v = betas[1] * v + (1 - betas[1]) * g**2
    return w


def adopt_atan2(
    weights: Tensor, grads: list[Tensor], *, lr: float, betas: tuple[float, float]
) -> Tensor:
    """With a bounded ratio, and a step at the first gradient too, as in adv_optm."""
    w = weights.double().clone()
    m = torch.zeros_like(w)
    v = grads[0].double() ** 2
    for grad in grads:
        g = grad.double()
        n = 4 / math.pi * torch.atan2(g, v.sqrt())
        m = betas[0] * m + (1 - betas[0]) * n
        w = w - lr * m
        v = betas[1] * v + (1 - betas[1]) * g**2
    return w
