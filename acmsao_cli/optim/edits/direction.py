"""Edits that see the update and the gradient."""

from __future__ import annotations

from torch import Tensor

from acmsao_cli.optim.edits.base import direction_edit
from acmsao_cli.optim.rules.base import Context


@direction_edit("cautious")
def cautious(update: Tensor, grad: Tensor, ctx: Context) -> Tensor:
    """Drop entries that disagree with the gradient; keep the mean size (arXiv:2411.16085)."""
    agree = (update * grad > 0).to(update.dtype)
    share = ctx.mean(agree).clamp_(min=1e-3)
    return agree.mul_(update).div_(share)
