"""What a rule takes as the history of its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Slot

if TYPE_CHECKING:  # rules import momenta
    from acmsao_cli.optim.rules.base import Cells, Context


class Momentum(Protocol):
    """An exchangeable history of gradients.

    The rule gives the decay rate, and the bias correction its paper has (1 for none).
    """

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is remembered for each parameter."""

    def past(self, cells: Cells) -> Tensor:
        """Return the history before this gradient, uncorrected; read only."""

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Take in a gradient and return the history with it; it may be the state: read only."""


momentum: Registry[type[Momentum]] = Registry("momentum")


@momentum("ema")
@dataclass(frozen=True)
class Ema:
    """Exponential moving average: m <- b m + (1 - b) g, corrected m / (1 - b^t)."""

    slots = (Slot("momentum", gradient_like=True),)

    def past(self, cells: Cells) -> Tensor:
        """Return m."""
        return cells["momentum"].read()

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m / correction."""
        return _corrected(_average(grad, cells, "momentum", beta), correction)


@momentum("nesterov")
@dataclass(frozen=True)
class Nesterov(Ema):
    """The average as if the gradient came once more: b m + (1 - b) g (after Dozat 2016, NAdam)."""

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Look ahead by one gradient."""
        ahead = torch.lerp(grad, _average(grad, cells, "momentum", beta), beta)
        return _corrected(ahead, correction)


@momentum("ademamix")
@dataclass(frozen=True)
class AdEMAMix:
    """A fast average plus `alpha` times a slow one (Pagliardini et al. 2024, arXiv:2409.03137).

    m1 / (1 - b^t) + alpha m2, with alpha and both decay rates constant; the slow average is not
    corrected, so its weight grows as it fills.
    """

    slow_beta: float = 0.9999
    alpha: float = 5.0

    slots = (Slot("momentum", gradient_like=True), Slot("slow_momentum"))

    def __post_init__(self) -> None:
        if not 0 <= self.slow_beta < 1:
            raise OptimizerError(
                f"slow_beta must be in [0, 1), not {self.slow_beta}", hint="typical: 0.9999"
            )

    def past(self, cells: Cells) -> Tensor:
        """Return m1 + alpha m2."""
        return torch.add(cells["momentum"].read(), cells["slow_momentum"].read(), alpha=self.alpha)

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m1 / correction + alpha m2."""
        fast = _corrected(_average(grad, cells, "momentum", beta), correction)
        slow = _average(grad, cells, "slow_momentum", self.slow_beta)
        return torch.add(fast, slow, alpha=self.alpha)


def _average(grad: Tensor, cells: Cells, slot: str, beta: float) -> Tensor:
    average = cells[slot].read().lerp_(grad, 1 - beta)
    cells[slot].write(average)
    return average


def _corrected(average: Tensor, correction: Scalar) -> Tensor:
    return average if isinstance(correction, float) and correction == 1.0 else average / correction
