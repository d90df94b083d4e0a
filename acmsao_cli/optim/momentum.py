"""What a rule takes as the history of its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry
from acmsao_cli.optim.schedules import (
    Course,
    Scalar,
    between,
    check_decay,
    check_not_negative,
    decay_between,
    progress,
    value_at,
)
from acmsao_cli.optim.slots import Role, Slot

if TYPE_CHECKING:  # rules import momenta
    from acmsao_cli.optim.rules.base import Cells, Context


class Momentum(Protocol):
    """An exchangeable history of gradients.

    The rule gives the decay rate, and the bias correction its paper has (1 for none), and counts
    in `ctx.step` the gradients that the momentum was given: a rule may keep its first to itself.
    """

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is remembered for each parameter."""

    @property
    def meaning(self) -> str:
        """What decides, beside the slots' names, what is remembered; "" for nothing."""
        return ""

    @property
    def guarded(self) -> bool:
        """Whether its rule has to be, see `Rule.guarded`."""
        return False

    def rate(self, ctx: Context) -> Scalar:
        """What the learning rate is multiplied by at this step."""
        return 1.0

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return the history before this gradient, uncorrected; read only."""

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Take in a gradient and return the history with it; it may be the state: read only."""


momentum: Registry[type[Momentum]] = Registry("momentum")
RUN: Final = "run"
Warmup: TypeAlias = int | Literal["run"]


@momentum("ema")
@dataclass(frozen=True)
class Ema(Momentum):
    """Exponential moving average: m <- b m + (1 - b) g, corrected m / (1 - b^t)."""

    slots = (Slot("momentum", gradient_like=True),)
    meaning = "average"

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return m."""
        return cells["momentum"].read()

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m / correction, which is what is stored: an average that is always corrected."""
        return average(grad, cells, ctx, "momentum", decay_of_corrected(beta, correction))


@momentum("nesterov")
@dataclass(frozen=True)
class Nesterov(Ema):
    """The average as if the gradient came once more: b m + (1 - b) g (after Dozat 2016, NAdam)."""

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Look ahead by one gradient."""
        last = super().advance(grad, cells, ctx, beta, correction)
        return plus(last * beta, grad, (1 - beta) / correction)


@momentum("heavy_ball")
@dataclass(frozen=True)
class HeavyBall(Momentum):
    """The sum of SGD (Sutskever et al. 2013, in torch's form): m <- b m + (1 - dampening) g.

    The first gradient is not dampened. With `nesterov` the rule sees g + b m instead of m. A sum
    needs no bias correction; it is 1 / (1 - b) times as long as the average.
    """

    dampening: float = 0.0
    nesterov: bool = False

    slots = (Slot("momentum"),)

    @property
    def meaning(self) -> str:
        """How much of each gradient is summed."""
        return f"sum of {1 - self.dampening:g} g" if self.dampening else "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.dampening < 1 or (self.nesterov and self.dampening):
            raise OptimizerError(
                f"heavy_ball cannot have dampening {self.dampening}",
                hint="it lies in [0, 1), and is 0 with nesterov",
            )

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return m."""
        return cells["momentum"].read()

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m, or g + b m."""
        total = _accumulate(grad, cells, ctx, beta, 1 - self.dampening * (ctx.step > 1))
        return torch.add(grad, total, alpha=beta) if self.nesterov else total


@momentum("accumulator")
@dataclass(frozen=True)
class Accumulator(Momentum):
    """A sum, plus `alpha` times the gradient (Morwani et al. 2025, arXiv:2502.02431).

    m <- b m + g, and the rule sees m + alpha g: Simplified AdEMAMix, with the theory's scale, so
    it is 1 / (1 - b) + alpha times as long as an average and takes a smaller learning rate.
    For `warmup` steps (`run`: all of it) the decay rate goes from `start_beta` to the rule's, as in
    AdEMAMix. With `corrected` everything is divided by the weight that m's gradients have.
    """

    alpha: Course = 0.0
    warmup: Warmup = 0
    start_beta: float = 0.9
    corrected: bool = False

    meaning = "sum"

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        check_decay("start_beta", self.start_beta, "typical: 0.9")
        check_not_negative("alpha", self.alpha, "typical: 100; 0 is the sum alone")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The sum, and where it is wanted the sum of its gradients' weights."""
        weight = (Slot("weight", Role.SCALAR),) if self.corrected else ()
        return (Slot("momentum"), *weight)

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return m."""
        return cells["momentum"].read()

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m + alpha g, divided by the weight of m if that is wanted."""
        rate = decay_between(self.start_beta, beta, warmed_up(ctx, self.warmup))
        total = plus(_accumulate(grad, cells, ctx, rate), grad, value_at(self.alpha, ctx.step))
        if not self.corrected:
            return total
        weight = cells["weight"].read() * rate + 1
        cells["weight"].write(weight)
        return total.div_(weight)


@momentum("ademamix")
@dataclass(frozen=True)
class AdEMAMix(Momentum):
    """A fast average plus `alpha` times a slow one (Pagliardini et al. 2024, arXiv:2409.03137).

    m1 / (1 - b^t) + alpha m2. The slow average is not corrected, so its weight grows as it fills.
    For `warmup` steps (the paper: all of a `run`) alpha grows from 0, and the slow decay rate from
    the rule's, by equal amounts of its half-life. Either may follow a schedule of its own instead.
    """

    slow_beta: Course = 0.9999
    alpha: Course = 5.0
    warmup: Warmup = 0

    meaning = "average"

    def __post_init__(self) -> None:
        check_decay("slow_beta", self.slow_beta, "typical: 0.9999")
        check_not_negative("alpha", self.alpha, "typical: 5; 0 is the fast average alone")
        _check_warmup(self.warmup)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Both averages."""
        return (*Ema.slots, Slot("slow_momentum"))

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return m1 + alpha m2."""
        slow = cells["slow_momentum"].read()
        return plus(cells["momentum"].read(), slow, self._alpha(ctx))

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return m1 / correction + alpha m2."""
        share = warmed_up(ctx, self.warmup)
        slow_beta = decay_between(beta, value_at(self.slow_beta, ctx.step), share)
        fast = at_decay(Ema(), beta).advance(grad, cells, ctx, beta, correction)
        slow = average(grad, cells, ctx, "slow_momentum", slow_beta)
        return plus(fast, slow, self._alpha(ctx))

    def _alpha(self, ctx: Context) -> Scalar:
        return between(0.0, value_at(self.alpha, ctx.step), warmed_up(ctx, self.warmup))


@dataclass(frozen=True)
class SlowOnly(AdEMAMix):
    """AdEMAMix whose fast average is the gradient, as its paper proposes where memory is short."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slow average."""
        return (Slot("slow_momentum"),)


@dataclass(frozen=True)
class Nothing(Momentum):
    """The gradient itself."""

    slots = ()

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return 0."""
        return torch.zeros((), device=ctx.weights.device)

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return g."""
        return grad


def at_decay(chosen: Momentum, beta: float) -> Momentum:
    """Return what the momentum is at this decay rate: an average that forgets at once is nothing.

    A rule that takes its momentum from here has no slot for what would only repeat the gradient.
    """
    if beta == 0 and isinstance(chosen, Ema):
        return Nothing()
    if beta == 0 and isinstance(chosen, AdEMAMix):
        return SlowOnly(chosen.slow_beta, chosen.alpha, chosen.warmup)
    return chosen


def corrected(average: Tensor, correction: Scalar) -> Tensor:
    """Return average / correction; the average itself where there is nothing to correct."""
    return average if isinstance(correction, float) and correction == 1.0 else average / correction


def decay_of_corrected(beta: Scalar, correction: Scalar) -> Scalar:
    """Decay rate of m / (1 - b^t) itself (Shazeer & Stern 2018, arXiv:1804.04235, 7.1).

    1 - (1 - b) / (1 - b^t): 0 at first and b in the end. Kept like this, a state has one scale from
    the first step on, which storage in few bits needs.
    """
    return 1 - (1 - beta) / correction


def plus(x: Tensor, y: Tensor, times: Scalar) -> Tensor:
    """Return x + times y, fresh; torch takes `alpha` only as a host number."""
    if isinstance(times, Tensor):
        return torch.addcmul(x, y, times.to(y))
    return torch.add(x, y, alpha=times)


def plus_product(x: Tensor, a: Tensor, b: Tensor, times: Scalar) -> Tensor:
    """Add times a b to x, in place."""
    if isinstance(times, Tensor):
        return x.add_((a * b).mul_(times))
    return x.addcmul_(a, b, value=times)


def average(grad: Tensor, cells: Cells, ctx: Context, slot: str, beta: Scalar) -> Tensor:
    """Let the average in a slot take in a gradient, m <- b m + (1 - b) g; read only."""
    share = ctx.taken(1 - beta)
    weight = share.to(grad) if isinstance(share, Tensor) else share
    averaged = cells[slot].read().lerp_(grad, weight)
    cells[slot].write(averaged)
    return averaged


def _accumulate(
    grad: Tensor, cells: Cells, ctx: Context, beta: Scalar, share: Scalar = 1.0
) -> Tensor:
    total = cells["momentum"].read().mul_(ctx.kept(beta))
    if isinstance(share, Tensor):
        total.addcmul_(grad, share.to(grad))
    else:
        total.add_(grad, alpha=share)
    cells["momentum"].write(total)
    return total


def warmed_up(ctx: Context, warmup: Warmup) -> Scalar:
    """How much of the warm-up is done; one of the whole run needs its length."""
    if warmup != RUN:
        return progress(ctx.step, int(warmup))
    if ctx.total_steps is None:
        raise OptimizerError(
            "a warmup of the whole run needs to know its length",
            hint="give the optimizer total_steps, or the warmup a number of steps",
        )
    return progress(ctx.step, ctx.total_steps)


def _check_warmup(warmup: Warmup) -> None:
    if isinstance(warmup, str) and warmup != RUN:
        raise OptimizerError(f"warmup cannot be `{warmup}`", hint="a number of steps, or `run`")
    if not isinstance(warmup, str) and warmup < 0:
        raise OptimizerError(f"a warmup cannot take {warmup} steps", hint="0 is none")
