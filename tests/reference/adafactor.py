"""Adafactor as printed: Shazeer & Stern 2018 (arXiv:1804.04235), algorithms 4 and 5, in float64."""

import torch
from torch import Tensor


def adafactor(
    weights: Tensor,
    grads: list[Tensor],
    *,
    lr: float,
    beta1: float = 0.0,
    relative: bool = False,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip: float = 1.0,
) -> Tensor:
    """Matrices are factored, vectors are not; `relative` is rho_t max(eps2, RMS(w)) times lr."""
    w = weights.double().clone()
    row = col = full = m = torch.zeros(())
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        b = 1 - t**-0.8
        square = g**2 + eps[0]
        if g.dim() == 2:
            row = b * row + (1 - b) * square.sum(1)
            col = b * col + (1 - b) * square.sum(0)
            v = torch.outer(row, col) / row.sum()
        else:
            v = full = b * full + (1 - b) * square
        u = g / v.sqrt()
        u = u / max(1.0, _rms(u) / clip)
        step = max(eps[1], _rms(w)) * min(1e-2, t**-0.5) if relative else 1.0
        m = beta1 * m + (1 - beta1) * step * u
        w = w - lr * m
    return w


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
