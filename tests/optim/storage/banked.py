"""A rule that keeps something in host memory, as ACMSAO keeps its banks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from acmsao_cli.optim.rules.base import Cells, Context, Rule
from acmsao_cli.optim.slots import Slot


@dataclass(frozen=True)
class Banked(Rule):
    """A momentum, and a slow one that is visited now and then."""

    host: bool = True
    visits: int = 2
    writes: bool = True

    @property
    def slots(self) -> tuple[Slot, ...]:
        return Slot("fast"), Slot("bank", host=self.host, visits=self.visits)

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        fast = cells["fast"].read().lerp(grad, 0.1)
        cells["fast"].write(fast)
        if ctx.step % self.visits:
            return fast.clone()
        bank = cells["bank"].read().lerp(fast * ctx.norm(grad), 0.1)
        if self.writes:
            cells["bank"].write(bank)
        return fast + bank
