"""Which gradients a bank of the past takes in: decided by numbers, without waiting for a device."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.schedules import Scalar

Admission: TypeAlias = Literal["robust", "magnitude", "importance", "always"]
DECAY: Final = 0.9  # of the mean and the spread of norms, the document's
_GROWTH: Final = 1.25  # constant and slowly growing norms are below so many means
_MONSTER: Final = 10  # means: what is larger counts as so many
_FIRST: Final = 3  # so many are taken in whatever their norm
_PATIENCE: Final = 4  # refused in a row, then one is taken in


def averaged(norm: Tensor, mean: Tensor, spread: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """Take a gradient's norm into the averages, which start at 0: mu and sqrt(var).

    mu <- .9 mu + .1 n      var <- .9 var + .1 (n - mu)^2

    Of var the root is kept: squares of huge and of tiny norms are no fp32 numbers.
    """
    kept, taken = ctx.kept(DECAY), ctx.taken(1 - DECAY)
    mean = mean * kept + norm * taken
    return mean, torch.hypot(spread * kept**0.5, (norm - mean) * taken**0.5)


def observe(norm: Tensor, mean: Tensor, spread: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """As `averaged`, but after three steps n counts as at most 10 mu: no monster shapes mu."""
    seen, late = norm, ctx.step > _FIRST
    if late is not False:
        seen = torch.where((mean > 0) & late, norm.minimum(mean * _MONSTER), norm)
    return averaged(seen, mean, spread, ctx)


def usual(norm: Tensor, mean: Tensor, spread: Tensor, kappa: float) -> Tensor:
    """Whether a norm is no outlier: n <= 1.25 mu + kappa sqrt(var)."""
    return norm <= torch.add(mean * _GROWTH, spread, alpha=kappa)


def limit(mean: Tensor, spread: Tensor, threshold: float) -> Tensor:
    """The document's: mu + threshold (sqrt(var) + 1e-8)."""
    return torch.add(mean, spread + 1e-8, alpha=threshold)


def large(norm: Tensor, mean: Tensor, spread: Tensor, threshold: float) -> Tensor:
    """Whether a norm is above the document's limit."""
    return norm > limit(mean, spread, threshold)


def likely(norm: Tensor, mean: Tensor, chance: Tensor) -> Tensor:
    """With probability n / mu: importance sampling by the norm."""
    return chance * mean <= norm


def patient(waiting: Tensor) -> Tensor:
    """Whether one of the first three is still to come, or four were refused in a row."""
    return (waiting < _FIRST) | (waiting >= _FIRST + _PATIENCE)


def counted(waiting: Tensor, taken: Tensor, fit: Scalar) -> Tensor:
    """How many of the first three were taken in, and then 3 and how many were refused since."""
    return torch.where(taken, waiting.clamp(max=_FIRST - 1), waiting) + fit
