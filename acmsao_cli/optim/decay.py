"""How weights shrink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.rules.base import Context, bias_correction
from acmsao_cli.optim.schedules import check_decay


class Decay(Protocol):
    """Weight decay of strength `ctx.weight_decay`; the learning rate is the run's times the rule's.

    Both methods are only called where the strength is not zero.
    """

    def gradient(self, grad: Tensor, ctx: Context) -> Tensor:
        """Return what the rule sees as its gradient."""
        return grad

    def shrink(self, weights: Tensor, update: Tensor, ctx: Context) -> None:
        """Shrink the dense fp32 weights in place, before the update is subtracted."""
        return None


decay: Registry[type[Decay]] = Registry("decay")


@decay("decoupled")
@dataclass(frozen=True)
class Decoupled(Decay):
    """w <- w - lr decay w, beside the update (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    def shrink(self, weights: Tensor, update: Tensor, ctx: Context) -> None:
        """Scale all weights."""
        weights.mul_(1 - ctx.lr * ctx.weight_decay)


@decay("cautious")
@dataclass(frozen=True)
class Cautious(Decay):
    """Decoupled, only where the update shrinks the weight too (arXiv:2510.12402)."""

    def shrink(self, weights: Tensor, update: Tensor, ctx: Context) -> None:
        """Scale the weights whose update has their sign."""
        agree = weights * update >= 0
        weights.mul_(torch.where(agree, 1 - ctx.lr * ctx.weight_decay, 1.0))


@decay("corrected")
@dataclass(frozen=True)
class Corrected(Decay):
    """Decoupled, at the step size of a momentum that is not corrected: lr / (1 - beta^t) for lr.

    As a term beside Adam's quotient, before the step size multiplies both: strong at first, ten
    times at step 1 with beta 0.9.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        check_decay("beta", self.beta, "the rule's first beta; typical: 0.9")

    def shrink(self, weights: Tensor, update: Tensor, ctx: Context) -> None:
        """Scale all weights."""
        rate = ctx.lr / bias_correction(self.beta, ctx.step)
        weights.mul_(1 - rate * ctx.weight_decay)


@decay("l2")
@dataclass(frozen=True)
class L2(Decay):
    """Added to the gradient, as the penalty decay w^2 / 2 would, after the gradient edits."""

    def gradient(self, grad: Tensor, ctx: Context) -> Tensor:
        """Return g + decay w."""
        return torch.add(grad, ctx.weights, alpha=ctx.weight_decay)
