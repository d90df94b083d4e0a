"""ACMSAO's memory: averages of the past on several time scales, beside the fresh momentum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.admission import (
    Admission,
    counted,
    large,
    likely,
    observe,
    patient,
    usual,
)
from acmsao_cli.optim.agreement import LEAST, LEAST_LAGGED, keep, no_contradiction
from acmsao_cli.optim.banks import Bank, Mean, Ring, cosines, flags_of, powers
from acmsao_cli.optim.momentum import Ema, Momentum, average, decay_of_corrected, momentum
from acmsao_cli.optim.phases import Of, Phases, as_phases, at, phases_of, position, three_phases
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
BankKind: TypeAlias = Literal["mean", "ring"]
Visits: TypeAlias = Literal["momentum", "gradient"]
Pace: TypeAlias = Literal["steps", "learning_rate"]
AUTO: Final = "auto"
SCHEDULE: Final = "schedule"
SCALES: Final = powers(3)
_VISITS: Final = 25.0  # remembered in a run of unknown length
_QUARTER: Final = 0.25
_MOST_VISITS: Final = 50.0  # what banks of few bits can average: rounding adds up with the visits
_RUN: Final = 10  # a run of unknown length is taken for so many of the longest horizons
_NOISY: Final = 10.0  # noise to signal at which `scales: auto` leaves the horizon as it is
_STRETCH: Final = 4.0  # the most by which it is stretched or shortened
_TINY: Final = 1e-30
_OF_ALL: Final = 4  # numbers beside those of the scales: see _Numbers


@dataclass(frozen=True)
class MemoryOptions:
    """The memory's options, for the momentum and for the rule around it."""

    scales: tuple[int, ...] | str = SCALES
    horizon: float | None = None
    alpha: float | tuple[float, ...] = 2.0
    nesterov: bool = True
    visits: Visits = "momentum"
    admission: Admission = "robust"
    kappa: float = 1.0
    sparsity_factor: float = 0.1
    magnitude_threshold: float = 0.5
    temperature: float = 0.1
    lagged: bool = True
    bank: BankKind = "mean"
    history_size: int = 8
    cycle: float = 0.1
    cycle_period: int | str = 1000
    phases: Phases | Mapping[str, Any] | None = None
    total_steps: int | None = None
    pace: Pace = "steps"
    growth: Course | None = None
    ramp: Course | None = None
    ram_offload: tuple[bool, ...] | bool | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps between two visits, by scale."""
        return SCALES if isinstance(self.scales, str) else self.scales

    @property
    def offloaded(self) -> tuple[bool, ...]:
        """Which scales' banks live in host memory."""
        return flags_of(self.ram_offload, len(self.strides))

    @cached_property
    def all_phases(self) -> Phases:
        """The cycle's phases."""
        return phases_of(self.cycle, self.phases)

    def length(self, ctx: Context) -> int:
        """Steps of the run; where nobody knows, of one that is long for this memory."""
        told = self.total_steps or ctx.total_steps
        return told or max(1, round(_RUN * (self.horizon or _VISITS) * max(self.strides)))

    def visits_remembered(self, ctx: Context) -> float:
        """The horizon at the run's end: as told, or such that the longest is a quarter of it."""
        if self.horizon is not None:
            return self.horizon
        if not (self.total_steps or ctx.total_steps):
            return _VISITS
        return min(self.length(ctx) * _QUARTER / max(self.strides), _MOST_VISITS)

    def of_phase(self, ctx: Context, of: Of) -> Scalar:
        """A number of this step's phase: the first step is the cycle's position 0."""
        return at(self.all_phases, position(ctx.step - 1, self._period(ctx)), of)

    def _period(self, ctx: Context) -> float:
        """Steps of half a cycle."""
        if not isinstance(self.cycle_period, str):
            return self.cycle_period
        if not (self.total_steps or ctx.total_steps):
            raise OptimizerError(
                f"cycle_period={SCHEDULE} needs to know the run's length",
                hint="give the optimizer total_steps, or the period as a number of steps",
            )
        return self.length(ctx) / 2


@momentum("multi_scale")
@dataclass(frozen=True)
class MultiScale(MemoryOptions, Momentum):
    """Nesterov's average plus averages over longer and longer times: ACMSAO's memory.

    m as in nesterov      every S steps, if admitted:  H_S <- H_S + (x - H_S) / max(1, horizon l)
    d = m + alpha l mean_S(H_S)

    x is the gradient for S = 1, else the momentum, of which a sample now and then says nearly as
    much. l, the share of the run that is done, lets weight and horizon grow: early gradients are of
    a landscape that has gone. At its end the longest memory is a quarter of the run, or `horizon`
    visits. Added to the fresh momentum as in AdEMAMix (arXiv:2409.03137), not in
    its place. docs/acmsao.md says what each option does and what it was worth.
    """

    attention: Attention = "none"

    meaning = "average"

    def __post_init__(self) -> None:
        if self.phases is not None:
            object.__setattr__(self, "phases", as_phases(self.phases))
        check_options(self)
        check_choice("attention", self.attention, Attention)
        # Made now, for torch.compile cannot trace how Python 3.11 makes them.
        _ = self.slots, self.all_phases, self._shares, self._weight

    @property
    def guarded(self) -> bool:
        """A number that is not finite would stay in a bank for good."""
        return True

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The average, the banks, their sum if some are away, and a dozen numbers."""
        banks = (slot for bank in self._banks for slot in bank.slots)
        apart = (Slot("bank_sum"),) if self._apart else ()
        numbers = Slot("numbers", Role.SCALAR, width=_OF_ALL + len(self.strides))
        return (*Ema.slots, *banks, *apart, numbers, *self._sums())

    def rate(self, ctx: Context) -> Scalar:
        """Return the phase's factor."""
        return self.of_phase(ctx, "factor")

    def past(self, cells: Cells, ctx: Context) -> Tensor:
        """Return the uncorrected average plus the memory."""
        last = cells["momentum"].read()
        sums = _Sums(cells, ctx, self.lagged, observing=False)
        return self._remembering(last.clone(), last, _Numbers.of(cells).progress, sums)

    def advance(
        self, grad: Tensor, cells: Cells, ctx: Context, beta: float, correction: Scalar
    ) -> Tensor:
        """Return the fresh momentum plus the memory."""
        sums = _Sums(cells, ctx, self.lagged)
        last = average(grad, cells, ctx, "momentum", decay_of_corrected(beta, correction))
        news = ctx.once("memory", lambda: self._decide(_Numbers.of(cells), _norm(grad, ctx), ctx))
        cells["numbers"].write(news.kept)
        self._visit(grad, last, news, sums)
        if self.nesterov:
            # (b m + (1 - b) g) / (1 - b^(t+1)), of which m / (1 - b^t) is at hand
            share = (1 - beta) / (1 - beta * (1 - correction))
            fresh = torch.lerp(last, grad, share if isinstance(share, float) else share.to(grad))
        else:
            fresh = last.clone()
        return self._remembering(fresh, grad, news.numbers.progress, sums)

    # How much of the past counts

    def _remembering(self, fresh: Tensor, query: Tensor, progress: Tensor, sums: _Sums) -> Tensor:
        """Add the memory in place."""
        weight: Scalar = progress * self._weight
        if self.ramp is not None:
            weight = value_at(self.ramp, sums.ctx.step) * self._weight
        if not _is_one(sums.ctx.grad_scale):
            weight = weight * sums.ctx.grad_scale
        if self._weight == 0:
            return fresh
        fresh.addcmul_(self._memory(query, sums), _like(weight, fresh))
        return fresh

    def _memory(self, query: Tensor, sums: _Sums) -> Tensor:
        """The banks, by their shares and the attention that each deserves; read only."""
        if self.attention == "none":
            return self._together(query, sums)
        if self.attention == "tensor":
            memory = self._together(query, sums)
            return memory * self._similarities(query, [memory], sums)[0].clamp(min=0)
        values = self._values(query, sums)
        if self.attention == "element_per_scale":
            agree = [no_contradiction(value, query) for value in values]
            kept = sums("kept", agree)
            size = max(sums.ctx.rows * sums.ctx.cols, 1)
            shares = [torch.where(one > 0, one / size, 1.0) for one in kept]
            least = [LEAST_LAGGED if self.lagged else LEAST] * len(values)
            return _combined(list(map(keep, values, agree, shares, least)), self._shares)
        similar = self._similarities(query, values, sums)
        attended = similar.clamp(min=0)
        if self.attention == "softmax":
            attended = (similar / self.temperature).softmax(0) * len(values)
        values = [value * one for value, one in zip(values, attended.unbind(), strict=True)]
        return _combined(values, self._shares)

    def _similarities(self, query: Tensor, values: Sequence[Tensor], sums: _Sums) -> Tensor:
        """Cosines between the gradient and each of these, stacked in front."""
        found = sums(
            "similarity",
            [query * query, *(query * one for one in values), *(one * one for one in values)],
        )
        number = len(values)
        return cosines(found[1 : number + 1], found[0], found[number + 1 :])

    def _together(self, query: Tensor, sums: _Sums) -> Tensor:
        """Sum of all banks by their shares, the absent ones by their sum; read only."""
        if not self._apart:
            return _combined(self._values(query, sums), self._shares)
        values, shares = [sums.cells["bank_sum"].read()], [1.0]
        for bank, share in zip(self._banks, self._shares, strict=True):
            if not bank.host:
                values.insert(-1, bank.value(query, sums.cells, sums.ctx))
                shares.insert(-1, share)
        return _combined(values, shares)

    def _values(self, query: Tensor, sums: _Sums) -> list[Tensor]:
        return [bank.value(query, sums.cells, sums.ctx) for bank in self._banks]

    @cached_property
    def _alphas(self) -> list[float]:
        """What each bank counts at the end of the run; with a ramp, of its whole weight."""
        alpha = 1.0 if self.ramp is not None else self.alpha
        alphas = alpha if isinstance(alpha, tuple) else (alpha,) * len(self.strides)
        return [one / len(self.strides) for one in alphas]

    @cached_property
    def _weight(self) -> float:
        """The common factor of what the banks count: equal ones are just added up."""
        return self._alphas[0] if len(set(self._alphas)) == 1 else 1.0

    @cached_property
    def _shares(self) -> list[float]:
        """What each bank counts, but for the common factor."""
        if len(set(self._alphas)) == 1:
            return [1.0] * len(self.strides)
        return self._alphas

    # What the banks take in

    def _decide(self, before: _Numbers, norm: Tensor, ctx: Context) -> _News:
        """What this step's gradient changes, and which banks take in something."""
        numbers = self._observed(before, norm, ctx)
        taken = {}
        for index, stride in enumerate(self.strides):
            due = ctx.step % stride == 0
            if due is not False:
                taken[index] = self._admitted(index, norm, numbers, due, ctx)
        return _News(numbers, numbers.together(), taken)

    def _observed(self, numbers: _Numbers, norm: Tensor, ctx: Context) -> _Numbers:
        """Let the share of the run that is done grow, to 1 at most; take in the gradient's norm."""
        step: Scalar = 1 / self.length(ctx)
        peak = numbers.peak_rate
        if self.pace == "learning_rate":
            rate = _like(ctx.lr, peak)
            peak = peak.maximum(rate)
            step = rate / peak.clamp(min=_TINY) * step
        progress = (numbers.progress + step).clamp_(max=1.0)
        mean, spread = numbers.mean, numbers.spread
        if self._watched:
            mean, spread = observe(norm, mean, spread, ctx)
        return _Numbers(progress, mean, spread, peak, numbers.waiting)

    def _visit(self, grad: Tensor, last: Tensor, news: _News, sums: _Sums) -> None:
        """Show the gradient, or the momentum, to the banks whose turn it is."""
        cells, ctx = sums.cells, sums.ctx
        horizon = self._horizon(last, news.numbers, sums)
        for index, taken in news.taken.items():
            bank = self._banks[index]
            shown = grad if bank.stride == 1 or self.visits == "gradient" else last
            shown = shown if _is_one(ctx.grad_scale) else shown / ctx.grad_scale
            bank.take(shown, taken, horizon, cells, ctx)
        if self._apart and any(self._banks[index].host for index in news.taken):
            absent = [bank for bank in self._banks if bank.host]
            shares = [s for b, s in zip(self._banks, self._shares, strict=True) if b.host]
            values = [bank.value(grad, cells, ctx) for bank in absent]
            cells["bank_sum"].write(_combined(values, shares))

    def _admitted(
        self, index: int, norm: Tensor, numbers: _Numbers, due: Any, ctx: Context
    ) -> Tensor:
        """Decide for a scale, and count; what is not finite is neither taken nor refused."""
        fit = torch.full_like(norm, 1.0, dtype=torch.bool) if ctx.finite is None else ctx.finite
        fit = fit if due is True else fit & due
        if self.admission == "always":
            return fit
        mean, spread, waiting = numbers.mean, numbers.spread, numbers.waiting[index]
        chance = ctx.uniform(index)
        luck = self.sparsity_factor * self.of_phase(ctx, "recency") / (index + 1)
        match self.admission:
            case "robust":
                taken = usual(norm, mean, spread, self.kappa) | patient(waiting)
            case "magnitude":
                taken = large(norm, mean, spread, self.magnitude_threshold)
            case _:
                taken = likely(norm, mean, chance)
        taken = (taken | (chance < luck)) & fit
        numbers.waiting[index] = counted(waiting, taken, fit)
        return taken

    def _horizon(self, last: Tensor, numbers: _Numbers, sums: _Sums) -> Tensor:
        """Visits that a bank remembers, at least 1."""
        if self.growth is not None:
            return _like(value_at(self.growth, sums.ctx.step), numbers.progress).clamp(min=1)
        horizon = numbers.progress * self.visits_remembered(sums.ctx)
        if self.scales == AUTO:
            horizon = horizon * self._stretch(last, numbers, sums)
        return horizon.clamp_(min=1)

    def _stretch(self, last: Tensor, numbers: _Numbers, sums: _Sums) -> Tensor:
        """How much longer than usual to remember: the root of noise to signal, in bounds.

        Of pure noise the average keeps (1 - b) / (1 + b) of the square, of pure signal everything.
        """
        own = last if _is_one(sums.ctx.grad_scale) else last / sums.ctx.grad_scale
        (square,) = sums("momentum_square", [own * own])
        power = (numbers.mean**2 + numbers.spread**2).clamp(min=_TINY)
        kept = (square / power).clamp(1e-3, 1.0)
        return ((1 - kept) / kept / _NOISY).sqrt().clamp(1 / _STRETCH, _STRETCH)

    # What is remembered

    @cached_property
    def _banks(self) -> tuple[Bank, ...]:
        scales = list(zip(self.strides, self.offloaded, strict=True))
        if self.bank == "ring":
            return tuple(Ring(s, self.history_size, self.temperature, host) for s, host in scales)
        # A visit to one that is away renews the sum of all: so the finest says when.
        visits = min([s for s, host in scales if host], default=1) if self._apart else 1
        return tuple(Mean(s, host, visits if host else 1) for s, host in scales)

    @cached_property
    def _apart(self) -> bool:
        """Whether the banks in host memory are represented by their sum between visits.

        That takes weights that do not depend on what the banks hold.
        """
        fixed = self.bank == "mean" and self.attention in ("none", "tensor")
        return fixed and any(self.offloaded)

    @property
    def _watched(self) -> bool:
        return self.admission != "always" or self.scales == AUTO

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
        for name, width in wanted if self.lagged else ():
            yield Slot(name, Role.SCALAR, width=width, summed=True)


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
        before = self.cells[name].read().clone()
        if self.observing:
            self.cells[name].write(torch.cat([self.ctx.part(value) for value in values], 2))
        return list(before.split(1, 2))


@dataclass(frozen=True)
class _Numbers:
    """What is known of each parameter, all (batch, 1, 1): how a run and its gradients go."""

    progress: Tensor
    mean: Tensor  # of the gradient's norms
    spread: Tensor
    peak_rate: Tensor
    waiting: list[Tensor]  # by scale: see admission.counted

    @classmethod
    def of(cls, cells: Cells) -> _Numbers:
        progress, mean, spread, peak_rate, *waiting = cells["numbers"].read().split(1, 2)
        return cls(progress, mean, spread, peak_rate, waiting)

    def together(self) -> Tensor:
        """As they are kept, (batch, 1, their number)."""
        numbers = [self.progress, self.mean, self.spread, self.peak_rate, *self.waiting]
        return torch.cat(numbers, 2)


@dataclass(frozen=True)
class _News:
    """What a gradient changes, before anything of its size is touched."""

    numbers: _Numbers
    kept: Tensor
    taken: dict[int, Tensor]  # by scale that is due: whether it is admitted, bool (batch, 1, 1)


def _combined(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Sum of the values, each times its share; of a lone one the value itself: read only.

    From the coarsest on: so the sum of coarse banks that was kept apart has the bits it has here.
    """
    *finer, coarsest = zip(values, shares, strict=True)
    total, share = coarsest
    if share != 1.0:
        total = total * share
    for value, share in reversed(finer):
        total = torch.add(total, value, alpha=share)
    return total


def _norm(grad: Tensor, ctx: Context) -> Tensor:
    """The norm that admission goes by: of the parameter's gradient, as the guard knows it."""
    return ctx.norm(grad) if ctx.gradient_norm is None else ctx.gradient_norm


def _is_one(number: Scalar) -> bool:
    return isinstance(number, float) and number == 1.0


def _like(number: Scalar, tensor: Tensor) -> Tensor:
    return torch.as_tensor(number, device=tensor.device).to(tensor)


def check_choice(option: str, value: str, known: Any) -> None:
    """Refuse what is none of a Literal's words."""
    if value not in get_args(known):
        raise OptimizerError(
            f"{option} cannot be `{value}`", hint=f"one of: {', '.join(get_args(known))}"
        )


def check_options(options: MultiScale) -> None:
    """Refuse values out of range, and options that would have no effect."""
    for option, known in _CHOICES.items():
        check_choice(option, getattr(options, option), known)
    _check_scales(options)
    if options.horizon is not None:
        check_positive("horizon", options.horizon, "in visits; by default a quarter of the run")
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
        check_not_negative("alpha", alpha, "typical: 2; 0 is no memory")
        if not math.isfinite(alpha):
            raise OptimizerError(f"alpha cannot be {alpha}", hint="typical: 2; 0 is no memory")
    if len(options.offloaded) != number:
        raise OptimizerError(
            f"ram_offload has {len(options.offloaded)} flags for {number} scales",
            hint="one for each scale, as (False, False, True), or one for all",
        )


def _check_effect(options: MultiScale) -> None:
    """Refuse an option whose value is not the usual one where it would change nothing."""
    usual = {field.name: field.default for field in fields(MemoryOptions)}
    softmax = options.attention == "softmax" or options.bank == "ring"
    lagging = options.attention != "none" or options.scales == AUTO
    # A ramp says the whole weight and growth the whole horizon.
    growing = options.growth is None and options.bank == "mean"
    cycling = options.cycle > 0 or options.phases is not None or options.admission != "always"
    idle = {
        "kappa": (options.admission == "robust", "admission=robust"),
        "magnitude_threshold": (options.admission == "magnitude", "admission=magnitude"),
        "sparsity_factor": (options.admission != "always", "an admission that refuses"),
        "history_size": (options.bank == "ring", "bank=ring"),
        "temperature": (softmax, "attention=softmax or bank=ring"),
        "alpha": (options.ramp is None, "no ramp, which says the weight itself"),
        "horizon": (growing, "bank=mean, and no growth, which says the horizon itself"),
        "growth": (options.bank == "mean", "bank=mean"),
        "lagged": (lagging, "an attention that looks at whole tensors, or scales=auto"),
        "pace": (options.ramp is None or growing, "a weight or a horizon that grows by it"),
        "cycle_period": (cycling, "phases that change something"),
        "cycle": (options.phases is None, "no phases, which have their own factors"),
    }
    if options.scales == AUTO and not growing:
        raise OptimizerError(
            "scales=auto would change nothing", hint="it goes with bank=mean, and no growth"
        )
    for option, (used, where) in idle.items():
        if not used and getattr(options, option) != usual[option]:
            raise OptimizerError(
                f"{option}={getattr(options, option)} would change nothing",
                hint=f"it goes with {where}",
            )


_CHOICES: Final[dict[str, Any]] = {
    "admission": Admission,
    "bank": BankKind,
    "visits": Visits,
    "pace": Pace,
}
