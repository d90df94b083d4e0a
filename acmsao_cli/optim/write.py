"""The last two stations: decay, and writing into weights of any precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.optim.decay import Decay, Decoupled
from acmsao_cli.optim.noise import Noise, keep_nan, round_stochastic
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.rules.base import Cells, Context
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Role, Slot


class Rounding(Protocol):
    """How bf16 weights take fp32 values. A frozen dataclass."""

    slots: tuple[Slot, ...] = ()  # what is remembered of what was lost

    def dense(self, weights: Tensor, cells: Cells) -> Tensor:
        """Return the fp32 value of bf16 weights, fresh."""
        return weights.float()

    def store(self, weights: Tensor, dense: Tensor, noise: Noise, cells: Cells) -> None:
        """Write the fp32 value into bf16 weights."""


rounding: Registry[type[Rounding]] = Registry("rounding")


@rounding("nearest")
@dataclass(frozen=True)
class Nearest(Rounding):
    """To the nearest bf16: updates below half a unit in the last place are lost."""

    def store(self, weights: Tensor, dense: Tensor, noise: Noise, cells: Cells) -> None:
        """Round."""
        weights.copy_(dense)


@rounding("stochastic")
@dataclass(frozen=True)
class Stochastic(Rounding):
    """Up or down by chance: small updates survive in the mean (arXiv:2010.06192)."""

    def store(self, weights: Tensor, dense: Tensor, noise: Noise, cells: Cells) -> None:
        """Round by the weights' noise."""
        weights.copy_(round_stochastic(dense, noise))


@rounding("kahan")
@dataclass(frozen=True)
class Kahan(Rounding):
    """What rounding drops is kept in 2 bytes more (after Kahan; arXiv:2010.06192, section 4.2).

    Kept whole, as the lower 16 bits: weights take the course of fp32 weights to the last bit.
    """

    slots = (Slot("rounded_off", Role.WORD),)

    def dense(self, weights: Tensor, cells: Cells) -> Tensor:
        """Return the upper half plus the lower."""
        upper = weights.float().view(torch.int32)
        return upper.add_(cells["rounded_off"].read().to(torch.int32)).view(torch.float32)

    def store(self, weights: Tensor, dense: Tensor, noise: Noise, cells: Cells) -> None:
        """Round to the nearest, ties up in magnitude; the rest, of either sign, is a number of
        units in fp32's last place.
        """
        bits = dense.view(torch.int32)
        upper = (bits + 0x8000).bitwise_and_(-0x10000)
        weights.copy_(keep_nan(upper.view(torch.float32).clone(), dense))
        cells["rounded_off"].write((bits - upper).float())


@dataclass(frozen=True)
class Write:
    """Decay, then w <- w - lr u in fp32; bf16 weights are rounded once, fp32 weights never."""

    rounding: Rounding = field(default_factory=Stochastic)
    decay: Decay = field(default_factory=Decoupled)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What rounding remembers."""
        return self.rounding.slots

    def dense(self, weights: Tensor, cells: Cells) -> Tensor:
        """The weights in fp32; fp32 weights are their own."""
        if weights.dtype == torch.float32:
            return weights
        return self.rounding.dense(weights, cells)

    def __call__(
        self,
        weights: Tensor,
        dense: Tensor,
        update: Tensor,
        cells: Cells,
        ctx: Context,
        noise: Noise,
    ) -> None:
        """Write into `weights`, whose fp32 value is `dense` (they share memory if they are fp32).

        `update` stays as it is.
        """
        if ctx.weight_decay:
            self.decay.shrink(dense, update, ctx)
        _subtract(dense, update, ctx.lr)
        if weights.dtype != torch.float32:
            self.rounding.store(weights, dense, noise, cells)


def _subtract(weights: Tensor, update: Tensor, lr: Scalar) -> None:
    """Subtract lr times the update; torch takes `alpha` only as a host number."""
    if isinstance(lr, Tensor):
        weights.addcmul_(update, lr.to(weights), value=-1)
    else:
        weights.sub_(update, alpha=lr)
