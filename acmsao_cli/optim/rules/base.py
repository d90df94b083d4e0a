"""What a rule is, and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Cell

if TYPE_CHECKING:
    from acmsao_cli.optim.pipeline import Pipeline

Cells: TypeAlias = Mapping[str, Cell]
# Sums over these axes of (batch, rows, cols), which stay with length 1.
Sum: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]


Made = TypeVar("Made")
_GOLDEN: Final = 0.6180339887498949  # irrational turns that spread points evenly
_PLASTIC: Final = 0.7548776662466927


def sum_here(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum where the whole parameter is at hand."""
    return x.sum(axes, keepdim=True)


def _forget(name: str, value: Tensor) -> None:
    return None


@dataclass(frozen=True)
class Context:
    """One step's circumstances for a batch of parameters.

    Branch on `first`, never on `step`. Sum over a parameter only through `total` and its kin: a
    rule may be shown a block of rows at a time, and only they see all of it.
    """

    step: Scalar  # 1 at a parameter's first step
    first: bool
    lr: Scalar
    weight_decay: float
    weights: Tensor  # dense fp32 (batch, rows, cols), read only
    rows: int  # of the whole parameter
    cols: int
    shared: Mapping[str, Tensor] = field(default_factory=dict)  # common to all parameters; 0-d
    grad_scale: Scalar = 1.0  # gradients come this many times larger than they are: so eps does too
    sum: Sum = sum_here
    contribute: Callable[[str, Tensor], None] = _forget  # (name, entries), see Rule.finish
    maximize: bool = False  # the gradient's sign is turned before everything else
    total_steps: int | None = None  # the run's length, where it is known
    noise: Noise | None = None  # of the whole parameter, see `uniform`
    gradient_norm: Tensor | None = None  # of the parameter's gradient, (batch, 1, 1)
    # Where the rule is `guarded`: 1 (batch, 1, 1), or 0 for a gradient that is not finite, which is
    # given as zeros, its norm as 0.
    fit: Tensor | None = None
    known: dict[str, Any] | None = None  # see `once`; None where all rows are at hand

    def total(self, x: Tensor) -> Tensor:
        """Sum of each parameter's entries, (batch, 1, 1)."""
        return self.sum(x, (1, 2))

    def over_rows(self, x: Tensor) -> Tensor:
        """Sum of each column, (batch, 1, cols)."""
        return self.sum(x, (1,))

    def over_cols(self, x: Tensor) -> Tensor:
        """Sum of each row, (batch, rows, 1)."""
        return self.sum(x, (2,))

    def totals(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """The sums of several, each as `total` gives it, in one pass over a parameter's blocks."""
        here = torch.cat([x.sum((1, 2), keepdim=True) for x in xs])
        return self.sum(here, (1, 2)).chunk(len(xs))

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each parameter's entries, (batch, 1, 1)."""
        return self.total(x) / max(self.rows * self.cols, 1)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product, parameter by parameter, (batch, 1, 1)."""
        return self.total(a * b)

    def norm(self, x: Tensor) -> Tensor:
        """Euclidean norm of each parameter, (batch, 1, 1)."""
        here = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.sum(here.square_(), (1, 2)).sqrt_()

    def part(self, x: Tensor) -> Tensor:
        """Sum of the entries at hand, (batch, 1, 1): what is written to a `summed` slot."""
        return x.sum((1, 2), keepdim=True)

    @property
    def finite(self) -> Tensor | None:
        """Where the gradient is finite, bool (batch, 1, 1), if the rule is `guarded`."""
        return None if self.fit is None else self.fit > 0

    def kept(self, decay: Scalar) -> Scalar:
        """A decay rate, 1 where the gradient is not finite: what is averaged stays as it is."""
        return decay if self.fit is None else 1 - self.fit * (1 - decay)

    def taken(self, share: Scalar) -> Scalar:
        """The share of something new in an average, 0 where the gradient is not finite."""
        return share if self.fit is None else self.fit * share

    def once(self, key: str, make: Callable[[], Made]) -> Made:
        """What is the same for all blocks of a parameter, made for the first; read only.

        What it is made of must not ask for sums.
        """
        if self.known is None:
            return make()
        if key not in self.known:
            self.known[key] = make()
        return cast(Made, self.known[key])

    def uniform(self, index: int) -> Tensor:
        """Numbers in [0, 1), fp32 (batch, 1, 1), a function of seed, step, parameter and index.

        The hash of seed and step, turned by irrational parts for parameter and index: each is
        uniform by itself over the steps, and they differ, for a tenth of the cost of hashing.
        """
        assert self.noise is not None, "the step that asks has noise"
        start = self.noise.salt / (1 << 32) + index * _PLASTIC
        return (self.noise.numbers * _GOLDEN + start).frac().remainder_(1.0)


class Rule(Protocol):
    """A paper's formula and nothing else: what it remembers, and what to subtract before lr."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything remembered for each parameter."""

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Advance the cells by one fp32 gradient, which is read only; return a fresh update.

        What was written to a cell is not changed afterwards.
        """

    def rate(self, ctx: Context) -> Scalar:
        """What the learning rate is multiplied by, for update and decay: a momentum may say."""
        momentum = getattr(self, "momentum", None)
        return 1.0 if momentum is None else momentum.rate(ctx)

    @property
    def guarded(self) -> bool:
        """Whether a gradient that is not finite must leave weights and averages as they are.

        What takes part in this averages by `ctx.kept` and `ctx.taken`.
        """
        momentum = getattr(self, "momentum", None)
        return momentum is not None and momentum.guarded

    @property
    def whole(self) -> bool:
        """Whether it needs all rows of a parameter at once (matrix products)."""
        return False

    @property
    def contributions(self) -> tuple[str, ...]:
        """Names of the numbers that each parameter gives to `finish` by `ctx.contribute`.

        Each is the sum of all entries (batch, rows, cols) that are given under the name, block by
        block where the parameter is stepped so; one that is not finite counts as nothing.
        """
        return ()

    def shared(self) -> dict[str, float]:
        """Return the initial numbers common to all parameters."""
        return {}

    def finish(self, shared: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        """Change the shared 0-d numbers in place, once a step, after the last parameter.

        `totals` are the sums of the parameters' contributions, 0 for one without a gradient.
        """
        return None

    @property
    def meaning(self) -> str:
        """What else than the slots' names decides what the state means; "" for nothing."""
        return ""

    def rejects(self, pipeline: Pipeline) -> str | None:
        """Say why this rule cannot work in such a pipeline, or None."""
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
