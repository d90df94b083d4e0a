"""Lion as printed: Chen et al. 2023 (arXiv:2302.06675), program 1, in float64."""

import torch
from torch import Tensor


def lion(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Tensor:
    w = weights.double().clone()
    m = torch.zeros_like(w)
    for grad in grads:
        g = grad.double()
        update = torch.sign(betas[0] * m + (1 - betas[0]) * g)
        m = betas[1] * m + (1 - betas[1]) * g
        w = w - lr * (update + weight_decay * w)
    return w
