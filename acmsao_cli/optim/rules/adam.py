"""AdamW, and what is AdamW with another momentum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.momentum import (
    Accumulator,
    Ema,
    Momentum,
    at_decay,
    corrected,
    decay_of_corrected,
    plus_product,
)
from acmsao_cli.optim.ratio import Ratio, divide
from acmsao_cli.optim.rules.base import (
    Cells,
    Context,
    Rule,
    bias_correction,
    check_betas,
    rule,
)
from acmsao_cli.optim.schedules import Course, Scalar, check_positive, value_at
from acmsao_cli.optim.slots import Role, Slot, in_units_of

Correction: TypeAlias = Literal["momentum", "update", "none"]
_STORED: Final[dict[str, str]] = {
    "momentum": "corrected",
    "update": "mean square corrected",
    "none": "uncorrected",
}


@rule("adamw")
@dataclass(frozen=True)
class AdamW(Rule):
    """Momentum over the root mean square of gradients (Loshchilov & Hutter 2019, arXiv:1711.05101).

    v <- b2 v + (1 - b2) g^2      u = m^ / (sqrt(v / (1 - b2^t)) + eps)

    `amsgrad` takes the largest v so far, before it is corrected (Reddi et al. 2018, torch's form).
    `correction` says what is divided by 1 - b1^t: the momentum, or the update (the same but for
    atan2 and momenta of two parts; adv_optm's form). With none, v is not corrected either.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: Course = 1e-8
    momentum: Momentum = field(default_factory=Ema)
    ratio: Ratio = divide
    amsgrad: bool = False
    correction: Correction = "momentum"

    def __post_init__(self) -> None:
        check_betas(self.betas)
        check_positive("eps", self.eps, "typical: 1e-8; ratio=atan2 ignores it")
        if self.correction not in get_args(Correction):
            raise OptimizerError(
                f"correction cannot be `{self.correction}`",
                hint=f"one of: {', '.join(get_args(Correction))}",
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's, the mean square of gradients, and the largest one for amsgrad."""
        momentum = in_units_of("mean_square", self._momentum.slots)
        largest = (Slot("max_mean_square", Role.POSITIVE),) if self.amsgrad else ()
        return (*momentum, Slot("mean_square", Role.POSITIVE), *largest)

    @property
    def meaning(self) -> str:
        """Which of the averages are stored corrected."""
        return _STORED[self.correction]

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Divide the corrected momentum by the corrected root mean square."""
        root = self._root_mean_square(grad, cells, ctx)
        beta, _ = self.betas
        weight = self._weight(beta, ctx.step)
        early, late = (1.0, weight) if self.correction == "update" else (weight, 1.0)
        momentum = self._momentum.advance(grad, cells, ctx, beta, early)
        eps = value_at(self.eps, ctx.step) * ctx.grad_scale
        return corrected(self.ratio(momentum, root, eps), late)

    def root_before(self, cells: Cells, ctx: Context) -> Tensor:
        """The root mean square that the gradients before this one made, as `update` has it."""
        if not self.amsgrad or ctx.first:
            return cells["mean_square"].read().sqrt()
        weight = self._weight(self.betas[1], ctx.step - 1)
        return (cells["max_mean_square"].read() / weight).sqrt_()

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.betas[0])

    def _root_mean_square(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        _, beta = self.betas
        weight = self._weight(beta, ctx.step)
        decay = decay_of_corrected(beta, weight)
        square = plus_product(
            cells["mean_square"].read().mul_(ctx.kept(decay)), grad, grad, 1 - decay
        )
        cells["mean_square"].write(square)
        if self.amsgrad:
            # A gradient that is not finite counts in the weight, and must not raise the largest.
            found = square * ctx.taken(weight)
            largest = torch.maximum(found, cells["max_mean_square"].read())
            cells["max_mean_square"].write(largest)
            square = largest / weight
        return square.sqrt()

    def _weight(self, beta: float, step: Scalar) -> Scalar:
        return 1.0 if self.correction == "none" else bias_correction(beta, step)


@rule("simplified_ademamix")
@dataclass(frozen=True)
class SimplifiedAdEMAMix(AdamW):
    """AdamW with a sum as its momentum (Morwani et al. 2025, arXiv:2502.02431).

    u = (m + alpha g) / (sqrt(v / (1 - b2^t)) + eps), m <- b1 m + g

    Takes about a hundredth of AdamW's learning rate. The sum has no bias correction of its own
    unless its option `corrected` says so.
    """

    betas: tuple[float, float] = (0.99, 0.95)
    momentum: Momentum = field(default_factory=Accumulator)
