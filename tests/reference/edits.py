"""Edits as printed, on one whole parameter in float64."""

import torch
from torch import Tensor


def orthograd(weights: Tensor, grad: Tensor) -> Tensor:
    """Prieto et al. 2025 (arXiv:2501.04697), with the authors' rescaling to the old length."""
    w, g = weights.double().flatten(), grad.double().flatten()
    rest = g - (w @ g) / (w @ w) * w
    return (rest * g.norm() / rest.norm()).view(grad.shape)


def cautious(update: Tensor, grad: Tensor) -> Tensor:
    """Liang et al. 2024 (arXiv:2411.16085), as in the authors' code."""
    mask = (update * grad > 0).double()
    return update.double() * mask / mask.mean().clamp(min=1e-3)


def rms_clip(grad: Tensor, limit: float) -> Tensor:
    """Shazeer & Stern 2018 (arXiv:1804.04235), section 6."""
    rms = grad.double().square().mean().sqrt()
    return grad.double() / torch.clamp(rms / limit, min=1.0)


def grams(update: Tensor, grad: Tensor) -> Tensor:
    """Cao et al. 2024 (arXiv:2412.17107): sign(g) |u|."""
    return torch.where(grad > 0, update.abs(), torch.where(grad < 0, -update.abs(), 0.0)).double()
