"""What a rule is, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Cell

Scalar: TypeAlias = (
    float | Tensor
)  # a number; a 0-d tensor where a compiled step must not depend on its value
Cells: TypeAlias = Mapping[str, Cell]


@dataclass(frozen=True)
class Context:
    """One step's circumstances for a batch of parameters.

    Branch on `first`, never on `step`. Sum over a parameter only through `total` and its kin, which
    give (batch, 1, 1): the one place that would also sum over shards.
    """

    step: Scalar  # 1 at a parameter's first step
    first: bool
    lr: Scalar
    weight_decay: float
    weights: Tensor  # dense fp32 (batch, rows, cols), read only
    shared: dict[str, Tensor] = field(default_factory=dict)  # numbers common to all parameters

    def total(self, x: Tensor) -> Tensor:
        """Sum of each parameter's entries."""
        return x.sum((1, 2), keepdim=True)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each parameter's entries."""
        return self.total(x) / max(x.shape[1] * x.shape[2], 1)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product, parameter by parameter."""
        return self.total(a * b)

    def norm(self, x: Tensor) -> Tensor:
        """Euclidean norm of each parameter."""
        return self.dot(x, x).sqrt_()


class Rule(Protocol):
    """A paper's formula and nothing else: what it remembers, and what to subtract before lr."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything remembered for each parameter."""

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Advance the cells by one fp32 gradient, which is read only; return a fresh update."""

    def shared(self) -> dict[str, float]:
        """Return the initial numbers common to all parameters."""
        return {}

    def finish(self, shared: dict[str, Tensor]) -> None:
        """Change the shared 0-d numbers in place, once a step, after the last parameter."""
        return None


rule: Registry[type[Rule]] = Registry("optimizer")


def check_betas(betas: tuple[float, float]) -> None:
    """Refuse decay rates outside [0, 1)."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise OptimizerError(
            f"betas must be two numbers in [0, 1), not {betas}", hint="typical: betas=(0.9, 0.999)"
        )


def bias_correction(beta: float, step: Scalar) -> Scalar:
    """Weight an average with decay `beta` has after `step` gradients: 1 - beta^step."""
    decayed: Scalar = torch.pow(beta, step) if isinstance(step, Tensor) else beta**step
    return 1 - decayed
