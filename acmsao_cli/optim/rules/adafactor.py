"""Adafactor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from acmsao_cli.optim.momentum import Ema, Momentum, at_decay
from acmsao_cli.optim.rms import check_limit, clip_rms
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.schedules import Course, Scalar, check_decay, check_positive, value_at
from acmsao_cli.optim.slots import Extent, Role, Slot

_SMALLEST: Final = torch.finfo(torch.float32).tiny
_LARGEST_RELATIVE_STEP: Final = 1e-2


@rule("adafactor")
@dataclass(frozen=True)
class Adafactor(Rule):
    """Root mean square from row and column means (Shazeer & Stern 2018, arXiv:1804.04235).

    b = 1 - t^-decay_rate      R <- b R + (1 - b) mean_cols(g^2 + eps1)      C alike over the rows
    u = g / sqrt(R C / mean(R)), shrunk to a root mean square of at most `clip`

    Of a vector, which is one row, C is the exact mean square. The learning rate is the run's, as
    for every rule; the paper's own is `relative_step` (times min(0.01, 1 / sqrt(t)), and weight
    decay with it) and `scale_parameter` (updates times the weights' root mean square, at least
    eps2), at a learning rate of 1. `beta1` > 0 averages the updates.
    """

    decay_rate: float = 0.8
    eps1: Course = 1e-30
    eps2: float = 1e-3
    clip: float = 1.0
    relative_step: bool = False
    scale_parameter: bool = False
    beta1: float = 0.0
    momentum: Momentum = field(default_factory=Ema)

    def __post_init__(self) -> None:
        check_limit("adafactor's clip", self.clip)
        check_positive("decay_rate", self.decay_rate, "typical: 0.8")
        check_positive("eps1", self.eps1, "typical: 1e-30")
        check_positive("eps2", self.eps2, "typical: 1e-3")
        check_decay("beta1", self.beta1, "typical: 0, which is no momentum")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's, and the mean squares of rows and columns."""
        row = Slot("row_mean_square", Role.POSITIVE, extent=Extent.ROW)
        col = Slot("col_mean_square", Role.POSITIVE, extent=Extent.COL)
        return (*self._momentum.slots, row, col)

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Divide by the root of the factored mean square, shrink, scale, average."""
        square = self._mean_square(grad, cells, ctx)
        normal = clip_rms(grad / square.clamp_(min=_SMALLEST).sqrt_(), self.clip, ctx)
        if self.scale_parameter:
            mean_square = ctx.mean(ctx.weights.square())
            normal.mul_(mean_square.sqrt_().clamp_(min=self.eps2))
        # A copy, because what the momentum returns may be its state.
        return self._momentum.advance(normal, cells, ctx, self.beta1, correction=1.0).clone()

    def rate(self, ctx: Context) -> Scalar:
        """Return the relative step."""
        if not self.relative_step:
            return 1.0
        step: Scalar = ctx.step**-0.5
        if isinstance(step, Tensor):
            return step.clamp(max=_LARGEST_RELATIVE_STEP)
        return min(step, _LARGEST_RELATIVE_STEP)

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.beta1)

    def _mean_square(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        share = ctx.step**-self.decay_rate  # 1 - b: all of it at the first step
        square = grad.square().add_(value_at(self.eps1, ctx.step) * ctx.grad_scale**2)
        row = self._average(cells, "row_mean_square", ctx.over_cols(square) / ctx.cols, share)
        col = self._average(cells, "col_mean_square", ctx.over_rows(square) / ctx.rows, share)
        # The mean of the rows' means is that of the columns': sums over a row never cross blocks.
        mean = (ctx.over_cols(col) / ctx.cols).clamp_(min=_SMALLEST)
        return row / mean * col

    def _average(self, cells: Cells, slot: str, mean: Tensor, share: Scalar) -> Tensor:
        weight = share.to(mean) if isinstance(share, Tensor) else share
        average = torch.lerp(cells[slot].read(), mean, weight)
        cells[slot].write(average)
        return average
