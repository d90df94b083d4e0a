"""AdamW."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.momentum import Ema, Momentum
from acmsao_cli.optim.ratio import Ratio, divide
from acmsao_cli.optim.rules.base import (
    Cells,
    Context,
    Rule,
    bias_correction,
    check_betas,
    rule,
)
from acmsao_cli.optim.slots import Role, Slot, in_units_of


@rule("adamw")
@dataclass(frozen=True)
class AdamW(Rule):
    """Momentum over the root mean square of gradients (Loshchilov & Hutter 2019, arXiv:1711.05101).

    v <- b2 v + (1 - b2) g^2      u = m^ / (sqrt(v / (1 - b2^t)) + eps)
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = divide

    def __post_init__(self) -> None:
        check_betas(self.betas)
        if not self.eps > 0:
            raise OptimizerError(
                f"eps must be positive, not {self.eps}",
                hint="typical: eps=1e-8; ratio=atan2 ignores it",
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's, and the mean square of gradients."""
        momentum = in_units_of("mean_square", self.momentum.slots)
        return (*momentum, Slot("mean_square", Role.POSITIVE))

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Divide the corrected momentum by the corrected root mean square."""
        root = self._root_mean_square(grad, cells, ctx)
        beta, _ = self.betas
        correction = bias_correction(beta, ctx.step)
        momentum = self.momentum.advance(grad, cells, ctx, beta, correction)
        return self.ratio(momentum, root, self.eps * ctx.grad_scale)

    def _root_mean_square(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        _, beta = self.betas
        square = cells["mean_square"].read().mul_(beta).addcmul_(grad, grad, value=1 - beta)
        cells["mean_square"].write(square)
        return (square / bias_correction(beta, ctx.step)).sqrt_()
