"""D-adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.momentum import Accumulator, HeavyBall, Momentum
from acmsao_cli.optim.ratio import atan2
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.rules.wrapping import LearningRateFree, finite, known
from acmsao_cli.optim.schedules import Scalar, value_at
from acmsao_cli.optim.slots import Role, Slot


@runtime_checkable
class Measuring(Protocol):
    """A rule that D-adaptation goes around: it averages gradients over their root mean square."""

    momentum: Momentum

    def root_before(self, cells: Cells, ctx: Context) -> Tensor:
        """Return that root as it was before this gradient, entry by entry; fresh."""


@rule("dadaptation")
@dataclass(frozen=True)
class DAdaptation(LearningRateFree):
    """Finds the learning rate of Adam-like rules (Defazio & Mishchenko 2023, arXiv:2301.07733).

    r <- b3 r + (1 - b3) lr d <g, s / (sqrt(v) + eps)>     s <- b3 s + (1 - b3) lr d g
    u = inner's, with d g in its momentum, at rate lr      d <- max(d, r / ((1 - b3) |s|_1))

    v is the inner rule's mean square before g. The update has to be as long as its momentum, so
    that d passes through. Set lr = 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        inner: Any = self.inner
        name = part_name(inner)
        if not isinstance(inner, Measuring):
            raise OptimizerError(
                "dadaptation measures gradients by the root mean square of those before, entry by "
                f"entry, and {name} does not tell it",
                hint="inner=adamw or inner=adopt; prodigy goes around any rule",
            )
        if isinstance(self.inner, AdamW) and self.inner.ratio is atan2:
            raise OptimizerError(
                f"dadaptation scales the momentum of {name}, which ratio=atan2 would not pass on",
                hint="ratio=divide; prodigy goes with atan2",
            )
        if isinstance(inner.momentum, HeavyBall | Accumulator):
            raise OptimizerError(
                f"dadaptation finds a distance from averages, and the momentum of {name} is a sum",
                hint="momentum=ema or another average; prodigy goes with sums",
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's, with its momentum of another size, and the weighted sum."""
        return (*self._weighted_inner().slots, Slot("gradient_sum", Role.EXACT))

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Measure the gradient, then step with d in the momentum; the rate is d, so divide."""
        self._measure(grad, cells, ctx)
        return self._weighted_inner().update(grad, cells, ctx).div_(ctx.shared["d"])

    def estimate(
        self, shared: Mapping[str, Tensor], numerator: Tensor, denominator: Tensor
    ) -> None:
        """d grows to the estimate, at most by the growth rate in a step."""
        d, average, share = shared["d"], shared["d_numerator"], 1 - self.decay
        average.mul_(self.decay).add_(numerator, alpha=share)
        found = known(average, denominator * share, d)
        d.copy_(d.maximum(found.minimum(d * self.growth_rate)))

    def _measure(self, grad: Tensor, cells: Cells, ctx: Context) -> None:
        weight = ctx.shared["d"] * ctx.lr
        eps = value_at(getattr(self.inner, "eps", 1e-8), ctx.step) * ctx.grad_scale
        gradients = cells["gradient_sum"].read()
        inner: Any = self.inner
        measured = gradients / inner.root_before(cells, ctx).add_(eps)
        ctx.contribute("numerator", measured.mul_(grad).mul_(weight))
        added = finite(grad * (weight * (1 - self.decay)))
        gradients = gradients.mul_(self.decay).add_(added)
        cells["gradient_sum"].write(gradients)
        ctx.contribute("denominator", gradients.abs())

    def _weighted_inner(self) -> Rule:
        inner: Any = self.inner
        weighted: Rule = replace(inner, momentum=_Weighted(inner.momentum))
        return weighted


@dataclass(frozen=True)
class _Weighted(Momentum):
    """A history in which every gradient weighs by the d of its time."""

    history: Momentum

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The history's; no longer of the size of gradients."""
        return tuple(replace(slot, gradient_like=False) for slot in self.history.slots)

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return the weighted history."""
        return self.history.past(cells, ctx)

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Take in d g."""
        return self.history.advance(grad * ctx.shared["d"], cells, ctx, beta, correction)
