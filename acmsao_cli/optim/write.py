"""The last two stations: decoupled decay, and writing into weights of any precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise, round_stochastic
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.schedules import Scalar

Rounding: TypeAlias = Callable[[Tensor, Noise], Tensor]  # fp32 value -> bf16

rounding: Registry[Rounding] = Registry("rounding")


@rounding("nearest")
def nearest(value: Tensor, noise: Noise) -> Tensor:
    """To the nearest bf16: updates below half a unit in the last place are lost."""
    return value.to(torch.bfloat16)


@rounding("stochastic")
def stochastic(value: Tensor, noise: Noise) -> Tensor:
    """Up or down by chance: small updates survive in the mean (arXiv:2010.06192)."""
    return round_stochastic(value, noise)


@dataclass(frozen=True)
class Write:
    """w <- w - lr decay w - lr u in fp32; bf16 weights are rounded once, fp32 weights never."""

    rounding: Rounding = stochastic

    def __call__(
        self, weights: Tensor, dense: Tensor, update: Tensor, ctx: Context, noise: Noise
    ) -> None:
        """Write into `weights`, whose fp32 value is `dense`; `update` stays as it is."""
        if ctx.weight_decay:
            dense.mul_(1 - ctx.lr * ctx.weight_decay)
        _subtract(dense, update, ctx.lr)
        if weights is not dense:
            weights.copy_(self.rounding(dense, noise))


def _subtract(weights: Tensor, update: Tensor, lr: Scalar) -> None:
    """Subtract lr times the update; torch takes `alpha` only as a host number."""
    if isinstance(lr, Tensor):
        weights.addcmul_(update, lr.to(weights), value=-1)
    else:
        weights.sub_(update, alpha=lr)
