"""SOAP."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from acmsao_cli.optim.momentum import Ema, Momentum, at_decay
from acmsao_cli.optim.ratio import Ratio, divide
from acmsao_cli.optim.rules.base import Cells, Context, Rule, bias_correction, check_betas, rule
from acmsao_cli.optim.rules.rotation import (
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
from acmsao_cli.optim.slots import Extent, Role, Slot

_RAISED: Final = 1e-6  # of the mean diagonal


@rule("soap")
@dataclass(frozen=True)
class Soap(Rule):
    """Adam in the eigenvectors of Shampoo's averages (Vyas et al. 2024, arXiv:2409.11321).

    u = P (P' m^ Q) / (sqrt(v^) + eps) Q'      m of g, v of (P' g Q)^2
    L <- b L + (1 - b) g g'      P <- qr(L P) every so many steps; R and Q alike, of g' g

    The first gradient only gives the first bases. The momentum stays in fp32: its rounding errors
    in a direction without gradient would be divided by nearly nothing. A side longer than `limit`
    is not rotated, nor is a vector: that is AdamW. `shampoo_beta`, by default the second beta, is
    the b of L and R.
    """

    betas: tuple[float, float] = (0.95, 0.95)
    eps: Course = 1e-8
    every: int = 10
    limit: int = 4096
    shampoo_beta: float | None = None
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = divide

    def __post_init__(self) -> None:
        check_betas((self.betas[0], self._average))
        check_betas(self.betas)
        check_rotation("soap", self.every, self.limit)
        check_positive("eps", self.eps, "typical: 1e-8")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's, the mean square in the bases, averages and bases of both sides."""
        momentum, square = exactly(self._momentum.slots), Slot("mean_square", Role.POSITIVE)
        return (*momentum, square, *self._averages(), *self._bases())

    @property
    def whole(self) -> bool:
        """Matrix products need every row."""
        return True

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Step in the bases of earlier gradients, then let them learn from this one."""
        update = torch.zeros_like(grad) if ctx.first else self._step(grad, cells, ctx)
        self._learn(grad, cells, ctx)
        return update

    def _step(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        held = {slot.name: cells[slot.name].read() for slot in self._bases() if is_kept(slot, ctx)}
        bases: Bases = held.get("left_basis"), held.get("right_basis")
        turned, count = rotate(grad, bases, ctx), ctx.step - 1
        beta1, beta2 = self.betas
        square = cells["mean_square"].read().mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        cells["mean_square"].write(square)
        root = (square / bias_correction(beta2, count)).sqrt_()
        momentum = self._momentum.advance(
            grad, cells, replace(ctx, step=count), beta1, bias_correction(beta1, count)
        )
        eps = value_at(self.eps, ctx.step) * ctx.grad_scale
        return rotate_back(self.ratio(rotate(momentum, bases, ctx), root, eps), bases)

    def _learn(self, grad: Tensor, cells: Cells, ctx: Context) -> None:
        """Average the gradient's products, and now and then turn the bases after them."""
        sides = [
            (average, basis)
            for average, basis in zip(self._averages(), self._bases(), strict=True)
            if is_kept(basis, ctx)
        ]
        for average, basis in sides:
            product = grad @ grad.mT if basis.extent is Extent.LEFT else grad.mT @ grad
            cells[average.name].write(cells[average.name].read().lerp_(product, 1 - self._average))
        changed = [*(basis.name for _, basis in sides), "mean_square"]
        if sides:
            renew(changed, lambda old: self._turned(old, sides, cells, ctx), self.every, cells, ctx)

    def _turned(
        self, old: tuple[Tensor, ...], sides: list[tuple[Slot, Slot]], cells: Cells, ctx: Context
    ) -> tuple[Tensor, ...]:
        """New bases, and the mean square with its rows and columns in their order."""
        *bases, square = old
        found = []
        for (average, basis), previous in zip(sides, bases, strict=True):
            product = cells[average.name].read()
            if ctx.first:
                found.append(_eigenvectors(product))
                continue
            turned, order = _power_iteration(product, previous)
            found.append(turned)
            if basis.extent is Extent.LEFT:
                square = square.take_along_dim(order.unsqueeze(2), 1)
            else:
                square = square.take_along_dim(order.unsqueeze(1), 2)
        return (*found, square)

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.betas[0])

    @property
    def _average(self) -> float:
        return self.betas[1] if self.shampoo_beta is None else self.shampoo_beta

    def _averages(self) -> tuple[Slot, ...]:
        return side_slots("average", self.limit)

    def _bases(self) -> tuple[Slot, ...]:
        return side_slots("basis", self.limit)


def _eigenvectors(product: Tensor) -> Tensor:
    """Of a symmetric product; of one not finite, any orthogonal matrix.

    In units of its largest entry, because squares of small gradients are denormal numbers, and with
    a raised diagonal, which keeps eigenvectors: solvers fail where many eigenvalues are zero.
    """
    product = product.nan_to_num()
    largest = product.abs().amax((1, 2), keepdim=True)
    product = product / largest.clamp(min=torch.finfo(product.dtype).tiny)
    diagonal = product.diagonal(dim1=1, dim2=2)
    diagonal.add_(_RAISED * diagonal.mean(1, keepdim=True))
    vectors: Tensor = torch.linalg.eigh(product).eigenvectors
    return vectors


def _power_iteration(product: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step towards the eigenvectors, the largest eigenvalue's first; and the order taken."""
    turned = product @ basis
    order = (basis * turned).sum(1).argsort(dim=1, descending=True)
    return torch.linalg.qr(turned.take_along_dim(order.unsqueeze(1), 2)).Q, order
