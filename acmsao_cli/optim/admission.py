"""Which gradients a bank of the past takes in: decided by numbers, without waiting for a device."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.optim.rules.base import Cells, Context
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Role, Slot

Admission: TypeAlias = Literal["robust", "magnitude", "importance", "always"]
ADMISSIONS: Final[tuple[str, ...]] = get_args(Admission)
DECAY: Final = 0.9  # of the mean and the spread of norms, the document's
_GROWTH: Final = 1.25  # constant and slowly growing norms are below so many means
_MONSTER: Final = 10  # means: what is larger counts as so many
_FIRST: Final = 3  # so many are taken in whatever their norm
_PATIENCE: Final = 4  # refused in a row, then one is taken in

STATISTICS: Final = (Slot("mean_norm", Role.SCALAR), Slot("norm_spread", Role.SCALAR))


def counters(num_scales: int) -> tuple[Slot, Slot]:
    """For each scale how many were admitted so far, and how many were refused since."""
    return (
        Slot("admitted", Role.SCALAR, depth=num_scales),
        Slot("refused", Role.SCALAR, depth=num_scales),
    )


def observe(norm: Tensor, cells: Cells, ctx: Context) -> tuple[Tensor, Tensor]:
    """Take a gradient's norm into the averages, both starting at 0; return mean and spread.

    mu <- .9 mu + .1 n      var <- .9 var + .1 (n - mu)^2

    After three steps n counts as at most 10 mu, lest one monster shape mu for long. What is kept of
    var is its root: squares of huge and of tiny norms are no fp32 numbers.
    """
    mean, spread = cells["mean_norm"].read(), cells["norm_spread"].read()
    known = (mean > 0) & (ctx.step > _FIRST)
    seen = torch.where(known, norm.minimum(_MONSTER * mean), norm)
    share = ctx.taken(1 - DECAY)
    mean = torch.lerp(mean, seen, torch.as_tensor(share).to(mean))
    both = torch.hypot(DECAY**0.5 * spread, (1 - DECAY) ** 0.5 * (seen - mean))
    spread = both if ctx.finite is None else torch.where(ctx.finite, both, spread)
    cells["mean_norm"].write(mean)
    cells["norm_spread"].write(spread)
    return mean, spread


def admit(
    kind: Admission,
    norm: Tensor,
    mean: Tensor,
    spread: Tensor,
    threshold: float,
    chance: Tensor,
    luck: Scalar,
    counts: tuple[Tensor, Tensor],
) -> Tensor:
    """Whether a gradient of this norm is taken in, bool (batch, 1, 1).

    robust      n <= 1.25 mu + threshold sqrt(var), or luck, or one of the first 3, or after 4
                refusals: outliers are refused
    magnitude   n > mu + threshold (sqrt(var) + 1e-8), or luck: the document's taste
    importance  with probability n / mu, the larger the likelier
    always      everything

    `luck` is the chance of those that would be refused; `chance` a uniform number. `counts` are how
    many were admitted, and refused since.
    """
    if kind == "always":
        return torch.ones_like(norm, dtype=torch.bool)
    lucky = chance < luck
    if kind == "magnitude":
        return (norm > mean + threshold * (spread + 1e-8)) | lucky
    if kind == "importance":
        return (chance * mean <= norm) | lucky
    admitted, refused = counts
    usual = norm <= _GROWTH * mean + threshold * spread
    return usual | lucky | (admitted < _FIRST) | (refused >= _PATIENCE)
