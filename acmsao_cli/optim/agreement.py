"""Which elements of an update agree with the gradient."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_STEEP: Final = 1e25
_LEAST: Final = 1e-3  # the kept share counts as at least so much


def agreement(update: Tensor, grad: Tensor) -> Tensor:
    """1 where both have one sign, else 0; fresh."""
    return (update * grad).sign_().clamp_(min=0)  # a comparison would cost three times as much


def no_contradiction(update: Tensor, grad: Tensor) -> Tensor:
    """0 where both have opposite signs, else 1: 1 + 1e25 u g, held in [0, 1]; fresh.

    A gradient of 0, as of a word that a small batch does not have, says nothing against a momentum.
    """
    one = torch.ones((), dtype=update.dtype, device=update.device)
    return torch.addcmul(one, update, grad, value=_STEEP).clamp_(0, 1)


def keep(update: Tensor, agree: Tensor, share: Tensor) -> Tensor:
    """The elements that agree, divided by their share so that the mean size stays; uses `agree`."""
    return agree.mul_(update).div_(share.clamp(min=_LEAST))
