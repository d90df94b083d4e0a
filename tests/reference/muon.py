"""Muon as published: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), in float64."""

import math

import torch
from torch import Tensor


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    beta: float = 0.95,
    weight_decay: float = 0.0,
    scale: str = "original",
) -> Tensor:
    """Of one matrix; the first dimension is the rows of anything with more."""
    w = weights.double().flatten(1)
    rows, cols = w.shape
    buffer = torch.zeros_like(w)
    size = {
        "original": math.sqrt(max(1, rows / cols)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols)),  # arXiv:2502.16982, equation 4
    }[scale]
    for grad in grads:
        g = grad.double().flatten(1)
        buffer = beta * buffer + (1 - beta) * g
        ahead = beta * buffer + (1 - beta) * g
        w = w - lr * weight_decay * w - lr * size * newton_schulz(ahead)
    return w.view(weights.shape)
