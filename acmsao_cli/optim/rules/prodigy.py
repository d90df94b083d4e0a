"""Prodigy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acmsao_cli.optim.rules.base import Cells, Context, rule
from acmsao_cli.optim.rules.wrapping import LearningRateFree, finite, known
from acmsao_cli.optim.schedules import check_positive
from acmsao_cli.optim.slots import Role, Slot


@rule("prodigy")
@dataclass(frozen=True)
class Prodigy(LearningRateFree):
    """Finds the learning rate of any rule (Mishchenko & Defazio 2023, arXiv:2306.06101); lr = 1.

    r <- b3 r + lr d^2 <g, w_0 - w>      s <- b3 s + lr d^2 g
    u = inner(d g), at rate lr d         d <- max(d, d_coef r / |s|_1)

    Gradients weigh by the d of their time: the inner rule sees d g, and its eps is d times larger.
    Its steps must be of a size that gradients do not change, as Adam's are: not those of SGD.
    `slice_p`: r and s look at every n-th column of a matrix. `safeguard_warmup` keeps lr out
    of s. Both are kept divided by d0, lest they underflow.
    """

    d_coef: float = 1.0
    safeguard_warmup: bool = False
    slice_p: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("d_coef", self.d_coef, "typical: 1.0, or 0.5 to 2.0")
        check_positive("slice_p", self.slice_p, "1; 11 saves ten elevenths of prodigy's memory")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's, the sum of gradients, and the weights before the first step."""
        own = ("gradient_sum", "start")
        mine = tuple(Slot(name, Role.EXACT, stride=self.slice_p) for name in own)
        return (*self.inner.slots, *mine)

    @property
    def meaning(self) -> str:
        """The unit of both sums."""
        return f"d0={self.d0}"

    def shared(self) -> dict[str, float]:
        """Add the largest estimate so far."""
        return {**super().shared(), "d_max": self.d0}

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Measure the way, and show the inner rule the weighted gradient."""
        self._measure(grad, cells, ctx)
        d = ctx.shared["d"]
        return self.inner.update(grad * d, cells, replace(ctx, grad_scale=ctx.grad_scale * d))

    def estimate(
        self, shared: Mapping[str, Tensor], numerator: Tensor, denominator: Tensor
    ) -> None:
        """d grows towards the largest estimate, at most by the growth rate in a step."""
        d, largest, average = shared["d"], shared["d_max"], shared["d_numerator"]
        average.mul_(self.decay).add_(numerator)
        found = known(self.d_coef * average, denominator, d)
        start = torch.where(d == self.d0, d.maximum(found), d)  # the first growth has no limit
        largest.copy_(largest.maximum(found))
        d.copy_(torch.minimum(largest, start * self.growth_rate))

    def _measure(self, grad: Tensor, cells: Cells, ctx: Context) -> None:
        stride = 1 if ctx.rows == 1 else self.slice_p
        weights, grad = ctx.weights[:, :, ::stride], grad[:, :, ::stride]
        if ctx.first:
            cells["start"].write(weights)
        d = ctx.shared["d"]
        weight = d / self.d0 * d
        way = (cells["start"].read() - weights).mul_(grad)
        ctx.contribute("numerator", way.mul_(weight * ctx.lr))
        added = grad * (weight if self.safeguard_warmup else weight * ctx.lr)
        gradients = cells["gradient_sum"].read().mul_(self.decay).add_(finite(added))
        cells["gradient_sum"].write(gradients)
        ctx.contribute("denominator", gradients.abs())
