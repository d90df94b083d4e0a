"""A2Grad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.schedules import Scalar, check_decay, check_positive
from acmsao_cli.optim.slots import Role, Slot

Variant: TypeAlias = Literal["uni", "inc", "exp"]


@rule("a2grad")
@dataclass(frozen=True)
class A2Grad(Rule):
    """Accelerated SGD scaled by the gradients' deviation (Deng et al. 2018, arXiv:1810.00553).

    d = g - mean(g)      c = 1 / (2 L / (k + 1) + beta h)      a_k = 2 / (k + 2),  k = 0, 1, ...
    x <- x - c g         w <- (1 - a_{k+1}) (w - a_k c g) + a_{k+1} x

    uni: v <- v + d^2, h = sqrt(v);  inc: v <- (k / (k + 1))^2 v + d^2, h = sqrt(v);
    exp: e <- rho e + (1 - rho) d^2, v <- max(v, e), h = sqrt((k + 1) v).

    The paper has no learning rate: with lr = 1 this is it, any other multiplies the whole change
    of w. `scalar`: one h for each parameter, from the squared length of d. Decay pulls on w alone.
    """

    beta: float = 10.0
    lips: float = 10.0
    rho: float = 0.5
    variant: Variant = "uni"
    scalar: bool = False

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise OptimizerError(
                f"variant of a2grad must be {', '.join(get_args(Variant))}, not {self.variant}",
                hint="uni adds up deviations; inc and exp forget old ones",
            )
        check_positive("beta", self.beta, "typical: 10")
        check_positive("lips", self.lips, "typical: 10")
        check_decay("rho", self.rho, "typical: 0.5")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The point x, the mean of gradients, and the squares of deviations."""
        role = Role.SCALAR if self.scalar else Role.POSITIVE
        squares = ("deviation", "deviation_average") if self.variant == "exp" else ("deviation",)
        kept = [Slot(name, role) for name in squares]
        return (Slot("point", Role.EXACT), Slot("mean", gradient_like=True), *kept)

    @property
    def meaning(self) -> str:
        """What is summed of the deviations."""
        return self.variant

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Move the point, and say how far the weights go towards it."""
        if ctx.first:
            cells["point"].write(ctx.weights)
        deviation = self._spread(self._deviation(grad, cells, ctx), cells, ctx)
        flat = 2 * self.lips / ctx.step * ctx.grad_scale
        stride = grad / deviation.sqrt().mul_(self.beta).add_(flat)
        point = cells["point"].read().sub_(stride)
        cells["point"].write(point)
        here, ahead = 2 / (ctx.step + 1), 2 / (ctx.step + 2)
        # w_old - w_new, without taking the difference of two nearly equal numbers.
        return (ctx.weights - point).mul_(ahead).add_(stride.mul_((1 - ahead) * here))

    def _deviation(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """The gradient minus the mean of all gradients up to it."""
        mean = cells["mean"].read()
        surprise = grad - mean
        cells["mean"].write(mean.add_(surprise / ctx.step))
        return surprise.mul_(1 - 1 / ctx.step)

    def _spread(self, deviation: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """The square of h."""
        square = deviation.square_()
        if self.scalar:
            square = ctx.total(square)
        if self.variant == "exp":
            return self._largest(square, cells) * ctx.step
        keep: Scalar = 1.0 if self.variant == "uni" else (1 - 1 / ctx.step) ** 2
        sums = cells["deviation"].read().mul_(keep).add_(square)
        cells["deviation"].write(sums)
        return sums

    def _largest(self, square: Tensor, cells: Cells) -> Tensor:
        average = cells["deviation_average"].read().lerp_(square, 1 - self.rho)
        cells["deviation_average"].write(average)
        largest = torch.maximum(cells["deviation"].read(), average)
        cells["deviation"].write(largest)
        return largest
