"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from acmsao_cli.optim.momentum import HeavyBall, Momentum, at_decay
from acmsao_cli.optim.rules.base import Cells, Context, Rule, bias_correction, rule
from acmsao_cli.optim.schedules import check_decay
from acmsao_cli.optim.slots import Slot


@rule("sgd")
@dataclass(frozen=True)
class Sgd(Rule):
    """Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al. 2013).

    u = m <- b m + g

    Dampening and Nesterov's form are options of the momentum `heavy_ball`. Another momentum has
    its own scale: an average is 1 - b times as long as this sum.
    """

    beta: float = 0.9
    momentum: Momentum = field(default_factory=HeavyBall)

    def __post_init__(self) -> None:
        check_decay("beta", self.beta, "typical: 0.9; 0 is no momentum")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's."""
        return self._momentum.slots

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Return a copy of the momentum, which may be its state."""
        correction = bias_correction(self.beta, ctx.step)
        return self._momentum.advance(grad, cells, ctx, self.beta, correction).clone()

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.beta)
