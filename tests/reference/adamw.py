"""AdamW as printed: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2, in float64."""

import math

import torch
from torch import Tensor


def adamw(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    ratio: str = "divide",
) -> Tensor:
    w = weights.double().clone()
    m = torch.zeros_like(w)
    v = torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        if ratio == "divide":
            update = m_hat / (v_hat.sqrt() + eps)
        else:
            update = 4 / math.pi * torch.atan2(m_hat, v_hat.sqrt())
        w = w - lr * update - lr * weight_decay * w
    return w


def ademamix(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    slow_beta: float = 0.9999,
    alpha: float = 5.0,
    eps: float = 1e-8,
) -> Tensor:
    """Pagliardini et al. 2024 (arXiv:2409.03137), algorithm 1 with constant alpha and beta3."""
    w = weights.double().clone()
    m1 = torch.zeros_like(w)
    m2 = torch.zeros_like(w)
    v = torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m1 = betas[0] * m1 + (1 - betas[0]) * g
        m2 = slow_beta * m2 + (1 - slow_beta) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m1_hat = m1 / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        w = w - lr * (m1_hat + alpha * m2) / (v_hat.sqrt() + eps)
    return w
