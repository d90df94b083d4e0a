"""The gradient noise scale, from norms that a step of several micro-batches has anyway.

McCandlish et al. 2018 (arXiv:1812.06162), appendix A.1. The gradient g_n of n examples has

    E |g_n|^2 = |G|^2 + tr(S) / n       G: the true gradient, S: covariance of one example's

so two sizes give both unknowns, without bias, and their ratio is the noise scale tr(S) / |G|^2:
the batch, in examples, up to which a larger one makes steps better nearly in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What a step weighs against the one after it: the means reach back over about 50 steps. Single
# estimates are noisy, and a ratio of means is less biased than a mean of ratios.
DECAY: Final = 0.98


@dataclass(frozen=True)
class Noise:
    """Running means of |G|^2 and tr(S), not yet divided by the `weight` they have gathered."""

    squared_signal: float = 0.0
    trace: float = 0.0
    weight: float = 0.0

    def after(self, first: float, whole: float, share: float, examples: int) -> Noise:
        """The means with one step more.

        `whole` is the norm of the step's gradient, a mean over `examples`; `first` the norm of
        what its first micro-batch added to it, `share` of the step's units.
        """
        if not 0 < share < 1:
            return self
        small, big = (first / share) ** 2, whole**2
        return Noise(
            DECAY * self.squared_signal + (1 - DECAY) * (big - share * small) / (1 - share),
            DECAY * self.trace + (1 - DECAY) * examples * share * (small - big) / (1 - share),
            DECAY * self.weight + (1 - DECAY),
        )

    @property
    def signal(self) -> float | None:
        """|G|^2, the squared norm of the true gradient; below zero by chance where noise rules."""
        return self.squared_signal / self.weight if self.weight else None

    @property
    def variance(self) -> float | None:
        """tr(S), the variance of one example's gradient, summed over all weights."""
        return self.trace / self.weight if self.weight else None

    @property
    def scale(self) -> float | None:
        """tr(S) / |G|^2 in examples; None while either is lost in the noise."""
        if self.squared_signal <= 0 or self.trace <= 0:
            return None
        return self.trace / self.squared_signal

    def exceeds(self, examples: int) -> bool:
        """Whether the noise scale is above a batch of so many; infinite where no signal shows."""
        return self.trace > examples * max(self.squared_signal, 0.0)
