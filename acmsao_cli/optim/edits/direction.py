"""Edits that see the update and the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from acmsao_cli.optim.agreement import agreement, keep
from acmsao_cli.optim.edits.base import direction_edit
from acmsao_cli.optim.rms import check_limit, clip_rms
from acmsao_cli.optim.rules.base import Context


@direction_edit("cautious")
def cautious(update: Tensor, grad: Tensor, ctx: Context) -> Tensor:
    """Drop entries that disagree with the gradient; keep the mean size (arXiv:2411.16085)."""
    agree = agreement(update, grad)
    return keep(update, agree, ctx.mean(agree))


@direction_edit("grams")
def grams(update: Tensor, grad: Tensor, ctx: Context) -> Tensor:
    """The update's size with the gradient's sign (Cao et al. 2024, arXiv:2412.17107).

    After Lion, whose update is a sign already, this is signSGD.
    """
    return grad.sign().mul_(update.abs())


@direction_edit("update_rms_clip")
@dataclass(frozen=True)
class UpdateRmsClip:
    """Shrink a parameter's update to a root mean square of `limit` (arXiv:1804.04235)."""

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_limit("update_rms_clip", self.limit)

    def __call__(self, update: Tensor, grad: Tensor, ctx: Context) -> Tensor:
        """Divide by max(1, rms / limit)."""
        return clip_rms(update, self.limit, ctx)
