"""AdamW as printed: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2, in float64."""

import math

import torch
from reference.simplified_ademamix import warmed_up
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
    late: bool = False,
) -> Tensor:
    """`late` divides the update by 1 - b1^t instead of the momentum, as adv_optm does."""
    w = weights.double().clone()
    m = torch.zeros_like(w)
    v = torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        weight = 1 - betas[0] ** t
        m_hat = m if late else m / weight
        v_hat = v / (1 - betas[1] ** t)
        if ratio == "divide":
            update = m_hat / (v_hat.sqrt() + eps)
        else:
            update = 4 / math.pi * torch.atan2(m_hat, v_hat.sqrt())
        update = update / weight if late else update
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
    warmup: int = 0,
    late: bool = False,
) -> Tensor:
    """Pagliardini et al. 2024 (arXiv:2409.03137), algorithm 1.

    alpha and beta3 are constant, or follow the paper's schedules for `warmup` steps. `late` is
    (m1 + alpha m2) / (1 - b1^t), as in adv_optm.
    """
    w = weights.double().clone()
    m1 = torch.zeros_like(w)
    m2 = torch.zeros_like(w)
    v = torch.zeros_like(w)
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        a_t = min(t * alpha / warmup, alpha) if warmup else alpha
        b3 = warmed_up(betas[0], slow_beta, t, warmup)
        m1 = betas[0] * m1 + (1 - betas[0]) * g
        m2 = b3 * m2 + (1 - b3) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        weight = 1 - betas[0] ** t
        v_hat = v / (1 - betas[1] ** t)
        momentum = (m1 + a_t * m2) / weight if late else m1 / weight + a_t * m2
        w = w - lr * momentum / (v_hat.sqrt() + eps)
    return w


def amsgrad(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Reddi et al. 2018, algorithm 2, with Adam's corrections after the maximum."""
    w = weights.double().clone()
    m, v, largest = (torch.zeros_like(w) for _ in range(3))
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        largest = torch.maximum(largest, v)
        w = w - lr * m / (1 - betas[0] ** t) / ((largest / (1 - betas[1] ** t)).sqrt() + eps)
    return w
