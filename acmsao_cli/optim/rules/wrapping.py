"""What rules around another rule have in common: a distance that is estimated while training."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Context, Rule
from acmsao_cli.optim.schedules import Scalar, check_decay, check_positive

if TYPE_CHECKING:
    from acmsao_cli.optim.pipeline import Pipeline


@dataclass(frozen=True)
class Wrapper(Rule):
    """A rule around another: what it does not say itself is as the inner rule says."""

    inner: Rule = field(default_factory=AdamW)

    @property
    def wrapped(self) -> Rule:
        """The inner rule as it is stepped."""
        return self.inner

    @property
    def whole(self) -> bool:
        """As the inner rule."""
        return self.wrapped.whole

    @property
    def guarded(self) -> bool:
        """As the inner rule."""
        return self.wrapped.guarded

    @property
    def contributions(self) -> tuple[str, ...]:
        """The inner rule's."""
        return self.wrapped.contributions

    def shared(self) -> dict[str, float]:
        """The inner rule's numbers."""
        return self.wrapped.shared()

    def rate(self, ctx: Context) -> Scalar:
        """As the inner rule."""
        return self.wrapped.rate(ctx)

    def finish(self, shared: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        """Let the inner rule finish."""
        self.wrapped.finish(shared, totals)

    def rejects(self, pipeline: Pipeline) -> str | None:
        """Refuse what the inner rule refuses."""
        reason = self.wrapped.rejects(pipeline)
        return None if reason is None else f"around {part_name(self.inner)}, which {reason}"


@dataclass(frozen=True)
class LearningRateFree(Wrapper):
    """A rule that multiplies its inner rule's learning rate by an estimate d of a distance.

    d is common to all parameters and constant within a step; what they contribute changes it for
    the next one.
    """

    inner: Rule = field(default_factory=lambda: AdamW(correction="none"))  # as in the papers
    d0: float = 1e-6
    beta3: float | None = None
    growth_rate: float = math.inf

    def __post_init__(self) -> None:
        check_positive("d0", self.d0, "typical: 1e-6")
        check_decay("beta3", self.decay, "by default the root of the inner rule's second beta")
        if not self.growth_rate > 1:
            raise OptimizerError(
                f"growth_rate must be above 1, not {self.growth_rate}",
                hint="typical: inf; 1.02 grows gently",
            )
        if isinstance(self.inner, LearningRateFree):
            raise OptimizerError(
                f"{part_name(self)} cannot be put around {part_name(self.inner)}",
                hint="one of them is enough",
            )

    @property
    def decay(self) -> float:
        """Of what is averaged for the estimate."""
        if self.beta3 is not None:
            return self.beta3
        inner = self.inner
        while isinstance(inner, Wrapper):
            inner = inner.inner
        _, beta = getattr(inner, "betas", (0.9, 0.999))
        return math.sqrt(beta)

    @property
    def contributions(self) -> tuple[str, ...]:
        """The inner rule's, and the parts of the fraction that estimates d."""
        return (*self.inner.contributions, "numerator", "denominator")

    def shared(self) -> dict[str, float]:
        """The inner rule's numbers, d, and the averaged numerator."""
        return {**self.inner.shared(), "d": self.d0, "d_numerator": 0.0}

    def rate(self, ctx: Context) -> Scalar:
        """Return d."""
        return ctx.shared["d"] * self.inner.rate(ctx)

    def finish(self, shared: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        """Let the inner rule finish, then estimate d anew where there was a gradient."""
        self.inner.finish(shared, totals)
        self.estimate(shared, totals["numerator"], totals["denominator"])

    @abstractmethod
    def estimate(
        self, shared: Mapping[str, Tensor], numerator: Tensor, denominator: Tensor
    ) -> None:
        """Change d in place; the denominator is 0 as long as all gradients were."""


def finite(x: Tensor) -> Tensor:
    """Put 0 in place, where a sum would not recover from what a gradient that overflowed left."""
    return x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def known(numerator: Tensor, denominator: Tensor, otherwise: Tensor) -> Tensor:
    """Return the fraction where it is finite, and what was estimated before elsewhere."""
    fraction = numerator / denominator
    return torch.where(fraction.isfinite(), fraction, otherwise)
