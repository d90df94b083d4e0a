"""AdaDiag."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.momentum import Ema, Momentum, at_decay
from acmsao_cli.optim.ratio import Ratio, divide
from acmsao_cli.optim.rules.base import Cells, Context, Rule, bias_correction, check_betas, rule
from acmsao_cli.optim.rules.rotation import (
    SIDES,
    Bases,
    check_rotation,
    exactly,
    is_kept,
    renew,
    rotate,
    rotate_back,
    side_slots,
)
from acmsao_cli.optim.schedules import Course, check_positive, value_at
from acmsao_cli.optim.slots import Role, Slot

Sides: TypeAlias = Literal["left", "right", "both"]
_CHOICES: Final = {**{side: (side,) for side in SIDES}, "both": tuple(SIDES)}


@rule("adadiag")
@dataclass(frozen=True)
class AdaDiag(Rule):
    """Adam in the singular vectors of a gradient (Nguyen et al. 2025, arXiv:2502.07488).

    g = P S Q' every so many steps      G = P' g  (`sides` both: P' g Q, "AdaDiag++")
    m <- b1 m + (1 - b1) G     v <- b2 v + (1 - b2) G^2     u = P m^ / (sqrt(v^) + eps)

    As printed, m and v stay as they are when the bases change; `reproject` keeps m in the weights'
    coordinates instead, so that it is carried over (in fp32: rounding errors in a direction without
    gradient would be divided by nearly nothing). A side longer than `limit` is not rotated, nor is
    a vector: that is AdamW.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: Course = 1e-8
    every: int = 200
    sides: Sides = "left"
    limit: int = 4096
    reproject: bool = False
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = divide

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_rotation("adadiag", self.every, self.limit)
        check_positive("eps", self.eps, "typical: 1e-8")
        if self.sides not in _CHOICES:
            raise OptimizerError(
                f"sides of adadiag cannot be `{self.sides}`",
                hint=f"one of: {', '.join(_CHOICES)}",
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's, the mean square in the bases, and the bases."""
        momentum = self._momentum.slots
        kept = exactly(momentum) if self.reproject else momentum
        return (*kept, Slot("mean_square", Role.POSITIVE), *self._sides())

    @property
    def whole(self) -> bool:
        """Matrix products need every row."""
        return True

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Turn, divide by the root mean square there, turn back."""
        bases = self._bases(grad, cells, ctx)
        turned = rotate(grad, bases, ctx)
        beta1, beta2 = self.betas
        square = cells["mean_square"].read().mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        cells["mean_square"].write(square)
        root = (square / bias_correction(beta2, ctx.step)).sqrt_()
        momentum = self._momentum.advance(
            grad if self.reproject else turned, cells, ctx, beta1, bias_correction(beta1, ctx.step)
        )
        if self.reproject:
            momentum = rotate(momentum, bases, ctx)
        eps = value_at(self.eps, ctx.step) * ctx.grad_scale
        return rotate_back(self.ratio(momentum, root, eps), bases)

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.betas[0])

    def _sides(self) -> tuple[Slot, ...]:
        return side_slots("basis", self.limit, _CHOICES[self.sides])

    def _bases(self, grad: Tensor, cells: Cells, ctx: Context) -> Bases:
        kept = [slot.name for slot in self._sides() if is_kept(slot, ctx)]
        if kept:
            renew(kept, lambda _: _singular_vectors(grad, kept), self.every, cells, ctx)
        found = {name: cells[name].read() for name in kept}
        return found.get("left_basis"), found.get("right_basis")


def _singular_vectors(grad: Tensor, kept: list[str]) -> tuple[Tensor, ...]:
    """A whole basis for each kept side, also of a zero gradient; of one not finite, any."""
    longer = "left_basis" if grad.shape[1] > grad.shape[2] else "right_basis"
    left, _, right = torch.linalg.svd(grad.nan_to_num(), full_matrices=longer in kept)
    found = {"left_basis": left, "right_basis": right.mT}
    return tuple(found[name] for name in kept)
