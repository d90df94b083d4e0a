"""Edits that see the weights and the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from acmsao_cli.optim.edits.base import gradient_edit
from acmsao_cli.optim.rms import check_limit, clip_rms
from acmsao_cli.optim.rules.base import Context

_TINY: Final = 1e-30
_LONGEST_STRETCH: Final = 1e3


@gradient_edit("orthograd")
def orthograd(grad: Tensor, ctx: Context) -> Tensor:
    """Drop the part along the weights, keep the length (Prieto et al. 2025, arXiv:2501.04697).

    What is left is stretched at most a thousandfold: of a gradient parallel to the weights only
    rounding errors remain, and those must not be blown up.
    """
    weights = ctx.weights
    along, square, length = ctx.totals(weights * grad, weights.square(), grad.square())
    rest = grad - along / square.clamp(min=_TINY) * weights
    length = length.sqrt()
    return rest.mul_(length / ctx.norm(rest).maximum(length / _LONGEST_STRETCH).clamp_(min=_TINY))


@gradient_edit("rms_clip")
@dataclass(frozen=True)
class RmsClip:
    """Shrink a parameter's gradient to a root mean square of `limit` (arXiv:1804.04235).

    Works during backward too, unlike clipping by the global norm.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_limit("rms_clip", self.limit)

    def __call__(self, grad: Tensor, ctx: Context) -> Tensor:
        """Divide by max(1, rms / limit)."""
        return clip_rms(grad, self.limit, ctx)
