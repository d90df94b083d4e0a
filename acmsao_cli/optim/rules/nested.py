"""Adam with the averages nested: divide first, average then."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from acmsao_cli.optim.momentum import Ema, Momentum, at_decay
from acmsao_cli.optim.ratio import Ratio, divide
from acmsao_cli.optim.rules.base import (
    Cells,
    Context,
    Rule,
    bias_correction,
    check_betas,
    rule,
)
from acmsao_cli.optim.schedules import Course, check_positive, value_at
from acmsao_cli.optim.slots import Role, Slot


@rule("nested_adam")
@dataclass(frozen=True)
class NestedAdam(Rule):
    """The average of gradients that are normalised first (LaProp, arXiv:2002.04839).

    v <- b2 v + (1 - b2) g^2      K <- b1 K + (1 - b1) g / sqrt(v / (1 - b2^t) + eps)
    u = K / (1 - b1^t)

    Ziyin et al. 2020. `docs/nested-adam.md` says why K's correction is Adam's. With
    `eps_inside=False` eps is added to the root and of the root's size: typically 1e-8.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: Course = 1e-16
    eps_inside: bool = True
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = divide

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_positive("eps", self.eps, "typical: 1e-16; 1e-8 with eps_inside=False")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's (of normalised gradients: without a unit), and the mean square."""
        return (*self._momentum.slots, Slot("mean_square", Role.POSITIVE))

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Normalise by a root mean square that counts this gradient, then average."""
        beta, _ = self.betas
        normal = self._normalised(grad, self._mean_square(grad, cells, ctx), ctx)
        correction = bias_correction(beta, ctx.step)
        # A copy, because what the momentum returns may be its state.
        return self._momentum.advance(normal, cells, ctx, beta, correction).clone()

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.betas[0])

    def _mean_square(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        _, beta = self.betas
        square = cells["mean_square"].read().mul_(beta).addcmul_(grad, grad, value=1 - beta)
        cells["mean_square"].write(square)
        return square / bias_correction(beta, ctx.step)

    def _normalised(self, grad: Tensor, square: Tensor, ctx: Context) -> Tensor:
        eps = value_at(self.eps, ctx.step)
        if self.eps_inside:
            return self.ratio(grad, square.add_(eps * ctx.grad_scale**2).sqrt_(), 0.0)
        return self.ratio(grad, square.sqrt_(), eps * ctx.grad_scale)
