"""How a momentum is divided by a root mean square."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.schedules import Scalar

# (numerator, root, eps) -> update; the root is the caller's to give away and may become the answer
Ratio: TypeAlias = Callable[[Tensor, Tensor, Scalar], Tensor]

ratio: Registry[Ratio] = Registry("ratio")


@ratio("divide")
def divide(numerator: Tensor, root: Tensor, eps: Scalar) -> Tensor:
    """n / (root + eps)."""
    return torch.div(numerator, root.add_(eps), out=root)


@ratio("floored")
def floored(numerator: Tensor, root: Tensor, eps: Scalar) -> Tensor:
    """n / max(root, eps): the floor does not bend larger roots (ADOPT, arXiv:2411.02853)."""
    return torch.div(numerator, root.clamp_(min=eps), out=root)


@ratio("atan2")
def atan2(numerator: Tensor, root: Tensor, eps: Scalar) -> Tensor:
    """4/pi atan2(n, root): bounded by 2, 1 where n = root, without eps (arXiv:2407.05872)."""
    return torch.atan2(numerator, root, out=root).mul_(4 / math.pi)
