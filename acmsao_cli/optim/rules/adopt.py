"""ADOPT."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from acmsao_cli.optim.momentum import Ema, Momentum, at_decay
from acmsao_cli.optim.ratio import Ratio, floored
from acmsao_cli.optim.rules.base import Cells, Context, Rule, check_betas, rule
from acmsao_cli.optim.schedules import Course, Power, Scalar, check_positive, value_at
from acmsao_cli.optim.slots import Role, Slot


@rule("adopt")
@dataclass(frozen=True)
class Adopt(Rule):
    """Momentum of gradients over the root mean square before them (arXiv:2411.02853).

    n = clip(g / max(sqrt(v), eps), c)      u = m <- b1 m + (1 - b1) n
    v <- b2 v + (1 - b2) g^2

    Taniguchi et al. 2024, algorithm 2. The first gradient only starts v = g^2; the limit `clip` and
    the momentum count from the second: c(t - 1). Nothing has a bias to correct. `ratio=divide` adds
    eps instead, as adv_optm does; `ratio=atan2` with `clip=inf` and `skip_first=False`, where the
    first step is the gradient's sign, is its form with atan2.
    """

    betas: tuple[float, float] = (0.9, 0.9999)
    eps: Course = 1e-6
    clip: Course = field(default_factory=Power)  # t^0.25
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = floored
    skip_first: bool = True

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_positive("eps", self.eps, "typical: 1e-6")
        check_positive("clip", self.clip, "the paper: t^0.25; inf does not clip")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's (of normalised gradients: without a unit), and the mean square."""
        return (*self._momentum.slots, Slot("mean_square", Role.POSITIVE))

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Divide by what was known before this gradient, then average."""
        root = self._root_mean_square(grad, cells, ctx)
        if ctx.first and self.skip_first:
            return torch.zeros_like(grad)
        eps = value_at(self.eps, ctx.step) * ctx.grad_scale
        counted = replace(ctx, step=ctx.step - 1) if self.skip_first else ctx
        normal = self._clipped(self.ratio(grad, root, eps), counted.step)
        # A copy, because what the momentum returns may be its state.
        return self._momentum.advance(normal, cells, counted, self.betas[0], correction=1.0).clone()

    def root_before(self, cells: Cells, ctx: Context) -> Tensor:
        """The root mean square of the gradients before this one."""
        return cells["mean_square"].read().sqrt()

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.betas[0])

    def _root_mean_square(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Return sqrt(v) without this gradient, which v takes in."""
        _, beta = self.betas
        if ctx.first:
            cells["mean_square"].write(grad.square())
            return grad.abs()
        square = cells["mean_square"].read()
        root = square.sqrt()
        cells["mean_square"].write(square.mul_(ctx.kept(beta)).addcmul_(grad, grad, value=1 - beta))
        return root

    def _clipped(self, normal: Tensor, step: Scalar) -> Tensor:
        limit = value_at(self.clip, step)
        if isinstance(limit, Tensor):
            limit = limit.to(normal)
            return normal.clamp_(-limit, limit)
        return normal.clamp_(-limit, limit)
