"""Which elements of an update agree with the gradient."""

from __future__ import annotations

from typing import Final

from torch import Tensor

LEAST: Final = 1e-3
LEAST_LAGGED: Final = 0.25  # of the step before: a bad one must not multiply the next


def agreement(update: Tensor, grad: Tensor) -> Tensor:
    """1 where both have one sign, else 0; fresh."""
    return (update * grad).sign_().clamp_(min=0)  # a comparison would cost three times as much


def no_contradiction(update: Tensor, grad: Tensor) -> Tensor:
    """0 where both have opposite signs, else 1; fresh.

    A gradient of 0, as of a word that a small batch does not have, says nothing against a momentum.
    """
    return (update * grad).sign_().add_(1).clamp_(max=1)


def keep(update: Tensor, agree: Tensor, share: Tensor, least: float = LEAST) -> Tensor:
    """The elements that agree, divided by their share so that the mean size stays; uses `agree`.

    The share counts as at least `least`: one that is of another step says little of this one's.
    """
    return agree.mul_(update).div_(share.clamp(min=least))
