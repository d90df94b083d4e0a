"""Shrinking what is too large, parameter by parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from acmsao_cli.errors import OptimizerError

if TYPE_CHECKING:  # rules and edits import this
    from acmsao_cli.optim.rules.base import Context


def clip_rms(x: Tensor, limit: float, ctx: Context) -> Tensor:
    """Return x / max(1, rms(x) / limit), fresh (Shazeer & Stern 2018, arXiv:1804.04235)."""
    rms = ctx.mean(x.square()).sqrt_()
    return x / rms.div_(limit).clamp_(min=1.0)


def check_limit(name: str, limit: float) -> None:
    """Refuse a limit that is not positive."""
    if not limit > 0:
        raise OptimizerError(
            f"the limit of {name} must be positive, not {limit}", hint="typical: 1.0"
        )
