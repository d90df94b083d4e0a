"""Lion."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from acmsao_cli.optim.momentum import Ema, Momentum
from acmsao_cli.optim.rules.base import Cells, Context, Rule, check_betas, rule
from acmsao_cli.optim.slots import Slot


@rule("lion")
@dataclass(frozen=True)
class Lion(Rule):
    """Sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    c = b1 m + (1 - b1) g      u = sign(c)      m <- b2 m + (1 - b2) g
    """

    betas: tuple[float, float] = (0.9, 0.99)
    momentum: Momentum = field(default_factory=Ema)

    def __post_init__(self) -> None:
        check_betas(self.betas)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's."""
        return self.momentum.slots

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Look at the momentum of earlier gradients, then let it advance."""
        beta1, beta2 = self.betas
        direction = torch.lerp(grad, self.momentum.past(cells, ctx), beta1).sign_()
        self.momentum.advance(grad, cells, ctx, beta2, correction=1.0)
        return direction
