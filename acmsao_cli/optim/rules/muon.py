"""Muon."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.momentum import Momentum, Nesterov, at_decay
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.schedules import check_decay, check_positive
from acmsao_cli.optim.slots import Slot

_QUINTIC: Final = (3.4445, -4.775, 2.0315)  # steepest at zero: singular values end in 0.7 .. 1.2
_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
Scale: TypeAlias = Literal["original", "match_rms_adamw"]
Precision: TypeAlias = Literal["fp32", "bf16"]


@rule("muon")
@dataclass(frozen=True)
class Muon(Rule):
    """Momentum with all singular values made equal (Jordan et al. 2024, kellerjordan.github.io).

    X <- a X + (b X X' + c (X X')^2) X, five times from m / |m|;  u = scale X

    `scale` "original" is sqrt(max(1, rows / cols)); "match_rms_adamw" is 0.2 sqrt(max(rows, cols)),
    with which AdamW's learning rate and decay serve as they are (arXiv:2502.16982). A convolution
    is the matrix (out, in x kernel). Meant for matrices: a vector only gets its length adjusted.
    """

    beta: float = 0.95
    scale: Scale = "original"
    iterations: int = 5
    precision: Precision = "fp32"  # of the iteration; bf16 is what torch.optim.Muon does
    eps: float = 1e-7
    momentum: Momentum = field(default_factory=Nesterov)

    def __post_init__(self) -> None:
        check_decay("beta", self.beta, "typical: 0.95")
        _check_choice("scale", self.scale, get_args(Scale))
        _check_choice("precision", self.precision, get_args(Precision))
        check_positive("iterations", self.iterations, "typical: 5")
        check_positive("eps", self.eps, "typical: 1e-7")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The momentum's."""
        return self._momentum.slots

    @property
    def whole(self) -> bool:
        """Matrix products need every row."""
        return True

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Orthogonalise the momentum."""
        momentum = self._momentum.advance(grad, cells, ctx, self.beta, correction=1.0)
        # Before rounding to bf16, unlike torch: a length summed in bf16 is off by percents.
        direction = momentum / ctx.norm(momentum).clamp(min=self.eps * ctx.grad_scale)
        direction = direction.to(_DTYPES[self.precision])
        return equalise(direction, self.iterations).float().mul_(self._scale(ctx))

    @property
    def _momentum(self) -> Momentum:
        return at_decay(self.momentum, self.beta)

    def _scale(self, ctx: Context) -> float:
        if self.scale == "original":
            return math.sqrt(max(1.0, ctx.rows / max(ctx.cols, 1)))
        return 0.2 * math.sqrt(max(ctx.rows, ctx.cols))


def equalise(x: Tensor, iterations: int) -> Tensor:
    """Bring the singular values of (batch, rows, cols), all at most 1, near 1 (Newton-Schulz).

    With no iterations it is `x` itself.
    """
    if x.shape[1] > x.shape[2]:
        return equalise(x.mT, iterations).mT
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptimizerError(
            f"{option} of muon must be {' or '.join(known)}, not {value}",
            hint=f"typical: {option}={known[0]}",
        )
