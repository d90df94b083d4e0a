"""A few steps of plain gradient descent before an adaptive rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.rules.base import Cells, Context, rule
from acmsao_cli.optim.rules.wrapping import Wrapper
from acmsao_cli.optim.schedules import Course, Scalar, check_not_negative, value_at
from acmsao_cli.optim.slots import Slot


@rule("warm_start")
@dataclass(frozen=True)
class WarmStart(Wrapper):
    """Steps of plain gradient descent, in which the inner rule's state fills; then the inner rule.

    u = scale g for the first `steps` steps. An adaptive rule's first steps rest on the second
    moment of very few gradients; the alternative to correcting them is not to take them.
    """

    steps: int = 100
    scale: Course = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise OptimizerError(
                f"a warm start cannot take {self.steps} steps", hint="typical: 100; 0 is none"
            )
        check_not_negative("scale", self.scale, "typical: 1")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's."""
        return self.inner.slots

    def rate(self, ctx: Context) -> Scalar:
        """Return the inner rule's rate once its updates are taken."""
        rate = self.inner.rate(ctx)
        if isinstance(ctx.step, Tensor):
            return torch.where(ctx.step > self.steps, rate, 1.0)
        return rate if ctx.step > self.steps else 1.0

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Advance the inner rule; return its update, or at first the scaled gradient."""
        update = self.inner.update(grad, cells, ctx)
        if isinstance(ctx.step, Tensor):
            return torch.where(ctx.step > self.steps, update, self._plain(grad, ctx))
        return update if ctx.step > self.steps else self._plain(grad, ctx)

    def _plain(self, grad: Tensor, ctx: Context) -> Tensor:
        return grad * (value_at(self.scale, ctx.step) / ctx.grad_scale)
