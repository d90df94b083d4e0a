"""ACMSAO's memory: averages of the past on several time scales, beside the fresh momentum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.admission import STATISTICS, Admission, admit, counters, observe
from acmsao_cli.optim.agreement import agreement, keep
from acmsao_cli.optim.banks import Bank, Mean, Ring, cosines
from acmsao_cli.optim.momentum import Ema, Momentum, average, decay_of_corrected, momentum
from acmsao_cli.optim.phases import Of, Phases, as_phases, at, position, three_phases
from acmsao_cli.optim.rules.base import Cells, Context
from acmsao_cli.optim.schedules import (
    Course,
    Scalar,
    check_not_negative,
    check_positive,
    value_at,
)
from acmsao_cli.optim.slots import Role, Slot

Attention: TypeAlias = Literal["none", "tensor", "scale", "softmax", "element_per_scale"]
Kind: TypeAlias = Literal["mean", "ring"]
Visits: TypeAlias = Literal["momentum", "gradient"]
Pace: TypeAlias = Literal["steps", "learning_rate"]
AUTO: Final = "auto"
SCHEDULE: Final = "schedule"
SCALES: Final = (1, 4, 16)
_RUN: Final = 10  # a run of unknown length is taken for so many of the longest horizons
_NOISY: Final = 10.0  # noise to signal at which `scales: auto` leaves the horizon as it is
_STRETCH: Final = 4.0  # the most by which it is stretched or shortened
_TINY: Final = 1e-30


@dataclass(frozen=True)
class MemoryOptions:
    """The memory's options, for the momentum and for the rule around it."""

    scales: tuple[int, ...] | str = SCALES
    horizon: float = 25.0
    alpha: float | tuple[float, ...] = 4.0
    nesterov: bool = True
    visits: Visits = "momentum"
    admission: Admission = "robust"
    kappa: float = 1.0
    sparsity_factor: float = 0.1
    magnitude_threshold: float = 0.5
    temperature: float = 0.1
    lagged: bool = True
    bank: Kind = "mean"
    history_size: int = 8
    cycle: float = 0.1
    cycle_period: int | str = 1000
    phases: Phases | None = None
    total_steps: int | None = None
    pace: Pace = "steps"
    growth: Course | None = None
    ramp: Course | None = None
    ram_offload: tuple[bool, ...] | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps between two visits, by scale."""
        return SCALES if isinstance(self.scales, str) else self.scales

    @property
    def all_phases(self) -> Phases:
        """The cycle's phases."""
        return three_phases(self.cycle) if self.phases is None else self.phases

    def length(self, ctx: Context) -> int:
        """Steps of the run; where nobody knows, of one that is long for this memory."""
        told = self.total_steps or ctx.total_steps
        return told or max(1, round(_RUN * self.horizon * max(self.strides)))

    def of_phase(self, ctx: Context, of: Of) -> Scalar:
        """A number of this step's phase: the first step is the cycle's position 0."""
        period = self.length(ctx) / 2 if isinstance(self.cycle_period, str) else self.cycle_period
        return at(self.all_phases, position(ctx.step - 1, period), of)


@momentum("multi_scale")
@dataclass(frozen=True)
class MultiScale(MemoryOptions, Momentum):
    """Nesterov's average plus averages over longer and longer times: ACMSAO's memory.

    m as in nesterov      every S steps, if admitted:  H_S <- H_S + (x - H_S) / max(1, horizon l)
    d = m + alpha l mean_S(H_S)

    x is the gradient for S = 1, else the momentum, of which a sample now and then says nearly as
    much. l, the share of the run that is done, lets weight and horizon grow: early gradients are of
    a landscape that has gone. Added to the fresh momentum as in AdEMAMix (arXiv:2409.03137), not in
    its place. docs/acmsao.md says what each option does and what it was worth.
    """

    attention: Attention = "none"

    meaning = "average"

    def __post_init__(self) -> None:
        if self.phases is not None:
            object.__setattr__(self, "phases", as_phases(self.phases))
        check_options(self)
        check_choice("attention", self.attention, Attention)

    @property
    def guarded(self) -> bool:
        """A number that is not finite would stay in a bank for good."""
        return True

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The average, the banks, their sum if some are away, and a dozen numbers."""
        banks = (slot for bank in self._banks for slot in bank.slots)
        apart = (Slot("bank_sum"),) if self._apart else ()
        return (*Ema.slots, *banks, *apart, *self._numbers(), *self._sums())

    def rate(self, ctx: Context) -> Scalar:
        """Return the phase's factor."""
        return self.of_phase(ctx, "factor")

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return the uncorrected average plus the memory."""
        last = cells["momentum"].read()
        sums = _Sums(cells, ctx, self.lagged, observing=False)
        return self._remembering(last, last, cells["progress"].read(), sums)

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return the fresh momentum plus the memory."""
        sums = _Sums(cells, ctx, self.lagged)
        last = average(grad, cells, ctx, "momentum", decay_of_corrected(beta, correction))
        progress = self._proceed(cells, ctx)
        self._visit(grad, last, progress, sums)
        fresh = last
        if self.nesterov:
            # (b m + (1 - b) g) / (1 - b^(t+1)), of which m / (1 - b^t) is at hand
            share = (1 - beta) / (1 - beta * (1 - correction))
            fresh = torch.lerp(last, grad, _like(share, grad))
        return self._remembering(fresh, grad, progress, sums)

    # How much of the past counts

    def _remembering(self, fresh: Tensor, query: Tensor, progress: Tensor, sums: _Sums) -> Tensor:
        ramp = progress if self.ramp is None else value_at(self.ramp, sums.ctx.step)
        return torch.addcmul(
            fresh, self._memory(query, sums), _like(ramp * sums.ctx.grad_scale, fresh)
        )

    def _memory(self, query: Tensor, sums: _Sums) -> Tensor:
        """The banks, by their weights and the attention that each deserves."""
        if self.attention == "none":
            return self._together(query, sums)
        if self.attention == "tensor":
            memory = self._together(query, sums)
            (similar,) = self._similarities(query, [memory], sums)
            return memory.mul_(similar.clamp(min=0))
        values = self._values(query, sums)
        if self.attention == "element_per_scale":
            agree = [agreement(value, query) for value in values]
            kept = sums("kept", agree)
            size = max(sums.ctx.rows * sums.ctx.cols, 1)
            shares = [torch.where(one > 0, one / size, 1.0) for one in kept]
            values = list(map(keep, values, agree, shares))
            return _combined(values, self._weights)
        similar = self._similarities(query, values, sums)
        if self.attention == "scale":
            return _combined(values, list(similar.clamp(min=0)), self._weights)
        weights = (similar / self.temperature).softmax(0)
        return _combined(values, list(weights * len(values)), self._weights)

    def _similarities(self, query: Tensor, values: Sequence[Tensor], sums: _Sums) -> Tensor:
        """Cosines between the gradient and each of these, stacked in front."""
        found = sums(
            "similarity",
            [query * query, *(query * one for one in values), *(one * one for one in values)],
        )
        number = len(values)
        return cosines(found[1 : number + 1], found[0], found[number + 1 :])

    def _together(self, query: Tensor, sums: _Sums) -> Tensor:
        """Sum of all banks by their weights, fresh; the absent ones by their sum."""
        if not self._apart:
            return _combined(self._values(query, sums), self._weights)
        total = sums.cells["bank_sum"].read().clone()
        for bank, weight in reversed(list(zip(self._banks, self._weights, strict=True))):
            if not any(slot.host for slot in bank.slots):
                total.add_(bank.value(query, sums.cells, sums.ctx), alpha=weight)
        return total

    def _values(self, query: Tensor, sums: _Sums) -> list[Tensor]:
        return [bank.value(query, sums.cells, sums.ctx) for bank in self._banks]

    @property
    def _weights(self) -> list[float]:
        """They share `alpha` evenly, or as it says; a ramp says the sum itself."""
        number = len(self.strides)
        alphas = self.alpha if isinstance(self.alpha, tuple) else (self.alpha,) * number
        return [(alpha if self.ramp is None else 1.0) / number for alpha in alphas]

    # What the banks take in

    def _proceed(self, cells: Cells, ctx: Context) -> Tensor:
        """Let the share of the run that is done grow, to 1 at most."""
        pace: Scalar = 1.0
        if self.pace == "learning_rate":
            rate = torch.as_tensor(ctx.lr, device=ctx.weights.device).float()
            peak = cells["peak_rate"].read().maximum(rate)
            cells["peak_rate"].write(peak)
            pace = rate / peak.clamp(min=_TINY)
        done = (cells["progress"].read() + pace / self.length(ctx)).clamp_(max=1.0)
        cells["progress"].write(done)
        return done

    def _visit(self, grad: Tensor, last: Tensor, progress: Tensor, sums: _Sums) -> None:
        """Show the gradient, or the momentum, to the banks whose turn it is."""
        cells, ctx = sums.cells, sums.ctx
        norm = _norm(grad, ctx)
        mean, spread = observe(norm, cells, ctx) if self._watched else (norm, norm)
        horizon = self._horizon(last, mean, spread, progress, sums)
        away = False
        for index, bank in enumerate(self._banks):
            due = ctx.step % bank.stride == 0
            if due is False:
                continue
            taken = self._admitted(index, norm, mean, spread, due, sums)
            shown = grad if bank.stride == 1 or self.visits == "gradient" else last
            if not (isinstance(ctx.grad_scale, float) and ctx.grad_scale == 1.0):
                shown = shown / ctx.grad_scale
            bank.take(shown, taken, horizon, cells, ctx)
            away = away or any(slot.host for slot in bank.slots)
        if away and self._apart:
            absent = [bank for bank in self._banks if any(slot.host for slot in bank.slots)]
            weights = [w for b, w in zip(self._banks, self._weights, strict=True) if b in absent]
            values = [bank.value(grad, cells, ctx) for bank in absent]
            cells["bank_sum"].write(_combined(values, weights))

    def _admitted(
        self, index: int, norm: Tensor, mean: Tensor, spread: Tensor, due: Any, sums: _Sums
    ) -> Tensor:
        """Decide for a scale, and count; what is not finite is neither taken nor refused."""
        cells, ctx = sums.cells, sums.ctx
        fit = due if ctx.finite is None else ctx.finite & due
        if self.admission == "always":
            return torch.ones_like(norm, dtype=torch.bool).logical_and(torch.as_tensor(fit))
        counting = self.admission == "robust"
        names = [slot.cells[index] for slot in counters(len(self.strides))] if counting else []
        admitted, refused = [cells[name].read() for name in names] or (norm, norm)
        taken: Tensor = fit & admit(
            self.admission,
            norm,
            mean,
            spread,
            threshold=self.kappa if counting else self.magnitude_threshold,
            chance=ctx.uniform(index),
            luck=self.sparsity_factor * self.of_phase(ctx, "recency") / (index + 1),
            counts=(admitted, refused),
        )
        for name, value in zip(
            names, (admitted + taken, torch.where(taken, 0.0, refused + fit)), strict=False
        ):
            cells[name].write(value)
        return taken

    def _horizon(
        self, last: Tensor, mean: Tensor, spread: Tensor, progress: Tensor, sums: _Sums
    ) -> Tensor:
        """Visits that a bank remembers, at least 1."""
        if self.growth is not None:
            grown = value_at(self.growth, sums.ctx.step)
            return _like(grown, progress).clamp(min=1)
        horizon = progress * self.horizon
        if self.scales == AUTO:
            horizon = horizon * self._stretch(last, mean, spread, sums)
        return horizon.clamp(min=1)

    def _stretch(self, last: Tensor, mean: Tensor, spread: Tensor, sums: _Sums) -> Tensor:
        """How much longer than usual to remember: the root of noise to signal, in bounds.

        Of pure noise the average keeps (1 - b) / (1 + b) of the square, of pure signal everything.
        """
        (square,) = sums("momentum_square", [last * last])
        power = (mean * mean + spread * spread).clamp(min=_TINY)
        kept = (square / power).clamp(1e-3, 1.0)
        return ((1 - kept) / kept / _NOISY).sqrt().clamp(1 / _STRETCH, _STRETCH)

    # What is remembered

    @property
    def _banks(self) -> tuple[Bank, ...]:
        flags = self.ram_offload or (False,) * len(self.strides)
        scales = list(zip(self.strides, flags, strict=True))
        if self.bank == "ring":
            return tuple(Ring(s, self.history_size, self.temperature, host) for s, host in scales)
        # A visit to one that is away renews the sum of all: so the finest says when.
        visits = min([s for s, host in scales if host], default=1) if self._apart else 1
        return tuple(Mean(s, host, visits if host else 1) for s, host in scales)

    @property
    def _apart(self) -> bool:
        """Whether the banks in host memory are represented by their sum between visits.

        That takes weights that do not depend on what the banks hold.
        """
        fixed = self.bank == "mean" and self.attention in ("none", "tensor")
        return fixed and any(self.ram_offload or ())

    @property
    def _watched(self) -> bool:
        return self.admission != "always" or self.scales == AUTO

    def _numbers(self) -> Iterator[Slot]:
        yield Slot("progress", Role.SCALAR)
        if self.pace == "learning_rate":
            yield Slot("peak_rate", Role.SCALAR)
        if self._watched:
            yield from STATISTICS
        if self.admission == "robust":
            yield from counters(len(self.strides))

    def _sums(self) -> Iterator[Slot]:
        """What `lagged` keeps for the next step."""
        number = len(self.strides)
        names = {
            "tensor": ("similarity", 3),
            "scale": ("similarity", 2 * number + 1),
            "softmax": ("similarity", 2 * number + 1),
            "element_per_scale": ("kept", number),
        }
        wanted = [names[self.attention]] if self.attention in names else []
        wanted += [("momentum_square", 1)] if self.scales == AUTO else []
        for name, depth in wanted if self.lagged else ():
            yield Slot(name, Role.SCALAR, depth=depth, summed=True)


@dataclass(frozen=True)
class _Sums:
    """Sums over a parameter: of this step, or (`lagged`) of the one before, without a pass more."""

    cells: Cells
    ctx: Context
    lagged: bool
    observing: bool = True

    def __call__(self, name: str, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the totals, each (batch, 1, 1)."""
        if not self.lagged:
            return self.ctx.totals(*values)
        names = [name] if len(values) == 1 else [f"{name}.{i}" for i in range(len(values))]
        before = [self.cells[one].read().clone() for one in names]
        for one, value in zip(names, values if self.observing else (), strict=False):
            self.cells[one].write(self.ctx.part(value))
        return before


def _combined(values: Sequence[Tensor], *weights: Sequence[Any]) -> Tensor:
    """Sum of the values, each times its weights; fresh.

    From the coarsest on: so the sum of coarse banks that was kept apart has the bits it has here.
    """
    total: Tensor | None = None
    for value, *factors in reversed(list(zip(values, *weights, strict=True))):
        for factor in factors[:-1]:
            value = value * factor
        if total is None:
            total = value * factors[-1]
        else:
            total.add_(value, alpha=factors[-1])
    assert total is not None
    return total


def _norm(grad: Tensor, ctx: Context) -> Tensor:
    """The norm that admission goes by: of the parameter's gradient, as the guard knows it."""
    return ctx.norm(grad) if ctx.gradient_norm is None else ctx.gradient_norm


def _like(number: Scalar, tensor: Tensor) -> Tensor:
    return torch.as_tensor(number, device=tensor.device).to(tensor)


def check_choice(option: str, value: str, known: Any) -> None:
    """Refuse what is none of a Literal's words."""
    if value not in get_args(known):
        raise OptimizerError(
            f"{option} cannot be `{value}`", hint=f"one of: {', '.join(get_args(known))}"
        )


def check_options(options: MemoryOptions) -> None:
    """Refuse values out of range, and options that would have no effect."""
    for option, known in _CHOICES.items():
        check_choice(option, getattr(options, option), known)
    _check_scales(options)
    check_positive("horizon", options.horizon, "typical: 25 visits")
    check_positive("temperature", options.temperature, "typical: 0.1")
    check_positive("history_size", options.history_size, "typical: 8")
    for option in ("kappa", "magnitude_threshold", "sparsity_factor"):
        usual = getattr(MemoryOptions, option)
        check_not_negative(option, getattr(options, option), f"typical: {usual}")
    for course in ("growth", "ramp"):
        if getattr(options, course) is not None:
            check_not_negative(course, getattr(options, course), "typical: null, by the progress")
    if options.total_steps is not None:
        check_positive("total_steps", options.total_steps, "the steps of the run")
    if options.cycle_period != SCHEDULE:
        if isinstance(options.cycle_period, str):
            raise OptimizerError(
                f"cycle_period cannot be `{options.cycle_period}`",
                hint="a number of steps, or `schedule`: one cycle in the run",
            )
        check_positive("cycle_period", options.cycle_period, "typical: 1000")
    three_phases(options.cycle)
    _check_effect(options)


def _check_scales(options: MemoryOptions) -> None:
    if options.scales != AUTO and (
        isinstance(options.scales, str)
        or not options.scales
        or list(options.scales) != sorted(set(options.scales))
        or options.scales[0] < 1
    ):
        raise OptimizerError(
            f"scales cannot be {options.scales}",
            hint="rising numbers of steps, as (1, 4, 16); or `auto`",
        )
    number = len(options.strides)
    if isinstance(options.alpha, tuple) and len(options.alpha) != number:
        raise OptimizerError(
            f"alpha has {len(options.alpha)} numbers for {number} scales",
            hint="one for each scale, or a single one",
        )
    for alpha in options.alpha if isinstance(options.alpha, tuple) else (options.alpha,):
        check_not_negative("alpha", alpha, "typical: 4; 0 is no memory")
    if options.ram_offload is not None and len(options.ram_offload) != number:
        raise OptimizerError(
            f"ram_offload has {len(options.ram_offload)} flags for {number} scales",
            hint="one for each scale, as (False, False, True)",
        )


def _check_effect(options: MemoryOptions) -> None:
    """Refuse an option whose value is not the usual one where it would change nothing."""
    usual = {field.name: field.default for field in fields(MemoryOptions)}
    softmax = getattr(options, "attention", None) == "softmax" or options.bank == "ring"
    # A ramp says the whole weight and growth the whole horizon.
    idle = {
        "kappa": (options.admission == "robust", "admission=robust"),
        "magnitude_threshold": (options.admission == "magnitude", "admission=magnitude"),
        "sparsity_factor": (options.admission != "always", "an admission that refuses"),
        "history_size": (options.bank == "ring", "bank=ring"),
        "temperature": (softmax, "attention=softmax or bank=ring"),
        "alpha": (options.ramp is None, "no ramp, which says the weight itself"),
        "horizon": (options.growth is None, "no growth, which says the horizon itself"),
        "cycle": (options.phases is None, "no phases, which have their own factors"),
    }
    for option, (used, where) in idle.items():
        if not used and getattr(options, option) != usual[option]:
            raise OptimizerError(
                f"{option}={getattr(options, option)} would change nothing",
                hint=f"it goes with {where}",
            )


_CHOICES: Final[dict[str, Any]] = {
    "admission": Admission,
    "bank": Kind,
    "visits": Visits,
    "pace": Pace,
}
