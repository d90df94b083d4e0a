"""ACMSAO as its document has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.admission import averaged, limit
from acmsao_cli.optim.banks import attention, flags_of, powers
from acmsao_cli.optim.multi_scale import check_choice
from acmsao_cli.optim.phases import Phases, as_phases, at, phases_of, position, three_phases
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.base import Cells, Context, rule
from acmsao_cli.optim.rules.wrapping import Wrapper
from acmsao_cli.optim.schedules import Scalar, check_not_negative, check_positive
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.codec import Cell

Similarity: TypeAlias = Literal["dot", "cosine"]
_TINY: Final = 1e-30
_STATISTICS: Final = (Slot("mean_norm", Role.SCALAR), Slot("norm_spread", Role.SCALAR))


class Bank(NamedTuple):
    """What is known of a scale's entries without reading them, each (entries, batch, 1, 1)."""

    norms: Tensor
    ages: Tensor  # in steps
    present: Tensor  # bool
    place: Tensor | None  # bool, where the gradient goes; None where nothing can change


@rule("acmsao_document")
@dataclass(frozen=True)
class AcmsaoDocument(Wrapper):
    """The literal algorithm of ACMSAO's document, with what could not run repaired.

    mu <- .9 mu + .1 n      var <- .9 var + .1 (n - mu)^2      n = |g|, s: the steps before this one
    limit = mu + magnitude_threshold (sqrt(var) + 1e-8)        r_i = recency of the phase / (i + 1)
    every 4^i steps bank i may take (g, n, s): while there is room if n > limit, then in the place
    of the least n_k / (age_k + 1) if n r_i is more; or else with a chance of sparsity_factor r_i
    w_ik = softmax_k(<g, h_k> / (1 + age_k / 4^i))             inner sees sum_i sum_k w_ik h_k

    The rate is the inner rule's times the phase's factor; `decay: corrected` is the document's
    decay. docs/acmsao-document.md lists the repairs; `acmsao` is the form to train with.
    `similarity: cosine` and `temperature` tame the softmax of raw products.
    """

    cycle_period: int = 1000
    num_scales: int = 3
    history_size: int = 8
    sparsity_factor: float = 0.1
    magnitude_threshold: float = 0.5
    ram_offload: tuple[bool, ...] | bool | None = None
    cycle: float = 0.1
    phases: Phases | None = None
    similarity: Similarity = "dot"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self)
        if self.phases is not None:
            object.__setattr__(self, "phases", as_phases(self.phases))

    @property
    def guarded(self) -> bool:
        """A number that is not finite would stay in a bank for good."""
        return True

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's, the banks, and the statistics of norms."""
        own = (slot for bank in self._banks for slot in bank)
        return (*self.inner.slots, *own, *_STATISTICS)

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps between two visits, by scale."""
        return powers(self.num_scales)

    @property
    def offloaded(self) -> tuple[bool, ...]:
        """Which scales' banks live in host memory."""
        return flags_of(self.ram_offload, self.num_scales)

    @property
    def all_phases(self) -> Phases:
        """The cycle's phases."""
        return phases_of(self.cycle, self.phases)

    def rate(self, ctx: Context) -> Scalar:
        """Return the inner rule's rate times the phase's factor, after this step."""
        factor = at(self.all_phases, position(ctx.step, self.cycle_period), "factor")
        return factor * super().rate(ctx)

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Remember the gradient, and show the inner rule what it recalls."""
        scaled = not (isinstance(ctx.grad_scale, float) and ctx.grad_scale == 1.0)
        own = grad / ctx.grad_scale if scaled else grad
        norm = ctx.gradient_norm
        norm = ctx.norm(own) if norm is None or scaled else norm
        limit = _limit(norm, self.magnitude_threshold, cells, ctx)
        scales = range(self.num_scales)
        banks = [self._visit(index, norm, limit, cells, ctx) for index in scales]
        weights = self._weights(self._products(own, cells, ctx), norm, banks, ctx)
        recalled = self._recall(own, weights, banks, cells)
        if scaled:
            recalled = recalled * ctx.grad_scale
        return self.inner.update(recalled, cells, replace(ctx, gradient_norm=None))

    # The banks

    @cached_property
    def _banks(self) -> tuple[tuple[Slot, Slot, Slot], ...]:
        """By scale the entries, their norms, and the steps they are from; 0 where there is none."""
        host = self.offloaded
        return tuple(
            (
                Slot(f"history_{index}", depth=self.history_size, host=host[index]),
                Slot(f"norms_{index}", Role.SCALAR, width=self.history_size),
                Slot(f"taken_at_{index}", Role.SCALAR, width=self.history_size),
            )
            for index in range(self.num_scales)
        )

    def _entries(self, index: int, cells: Cells) -> list[Cell]:
        return [cells[name] for name in self._banks[index][0].cells]

    def _visit(self, index: int, norm: Tensor, limit: Tensor, cells: Cells, ctx: Context) -> Bank:
        """Decide whether a scale takes the gradient, and note when and how large it was."""
        _, norms, steps = self._banks[index]
        taken_at = _in_front(steps, cells)
        bank = Bank(_in_front(norms, cells), ctx.step - taken_at, taken_at > 0, place=None)
        due = (ctx.step - 1) % self.strides[index] == 0
        if due is False:
            return bank
        fit = due if ctx.finite is None else ctx.finite & due
        place = self._place(index, norm, limit, bank, ctx) & fit
        bank = Bank(
            norms=torch.where(place, norm, bank.norms),
            ages=torch.where(place, 0.0, bank.ages),
            present=bank.present | place,
            place=place,
        )
        _write(norms, bank.norms, cells)
        _write(steps, torch.where(place, ctx.step, taken_at), cells)
        return bank

    def _place(self, index: int, norm: Tensor, limit: Tensor, bank: Bank, ctx: Context) -> Tensor:
        """Where the gradient goes, bool (entries, batch, 1, 1): at most one of each parameter's."""
        recency = at(self.all_phases, position(ctx.step - 1, self.cycle_period), "recency")
        recency = recency / (index + 1)
        importance = norm / limit
        lucky = ctx.uniform(index) < self.sparsity_factor * recency
        scores = bank.norms / limit / (bank.ages + 1)
        full = bank.present.all(0)
        wanted = torch.where(full, importance * recency > scores.amin(0), importance > 1)
        target = torch.where(full, scores.argmin(0), bank.present.sum(0))
        numbers = torch.arange(self.history_size, device=norm.device).view(-1, 1, 1, 1)
        return (wanted | lucky) & (numbers == target)

    # Attention

    def _products(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """The gradient's inner products with all entries as they were, (all, batch, 1, 1)."""
        parts, product = [], torch.empty_like(grad)  # one for all: allocating costs more
        for index in range(self.num_scales):
            for cell in self._entries(index, cells):
                parts.append(ctx.part(torch.mul(grad, cell.read(), out=product)))
                cell.release()
        return torch.stack(ctx.totals(*parts))

    def _weights(
        self, products: Tensor, norm: Tensor, banks: Sequence[Bank], ctx: Context
    ) -> Tensor:
        """What every entry counts with, and behind them the gradient itself: 1 if all are empty."""
        found = []
        for index, bank in enumerate(banks):
            here = products[index * self.history_size :][: self.history_size]
            if bank.place is not None:
                here = torch.where(bank.place, norm.square(), here)
            if self.similarity == "cosine":
                here = here / (norm * bank.norms).clamp(min=_TINY)
            scores = here / (1 + bank.ages / self.strides[index]) / self.temperature
            found.append(attention(scores.nan_to_num(), bank.present))
        empty = ~torch.cat([bank.present for bank in banks]).any(0, keepdim=True)
        weights = torch.cat([*found, empty.to(norm)])
        return weights if ctx.finite is None else weights * ctx.finite

    def _recall(self, grad: Tensor, weights: Tensor, banks: Sequence[Bank], cells: Cells) -> Tensor:
        """Put the gradient into its places; return the weighted sum of everything, fresh."""
        *of_entries, of_gradient = weights.unbind()
        recalled = grad * of_gradient
        remaining = iter(of_entries)
        for index, bank in enumerate(banks):
            for number, cell in enumerate(self._entries(index, cells)):
                value = cell.read()
                if bank.place is not None:  # one or the other, to the bit
                    cell.write(value.lerp_(grad, bank.place[number].to(grad)))
                recalled.addcmul_(value, next(remaining))
                cell.release()
        return recalled


def _limit(norm: Tensor, threshold: float, cells: Cells, ctx: Context) -> Tensor:
    """Take a norm into mean and variance; return the limit that important ones exceed."""
    mean, spread = averaged(norm, cells["mean_norm"].read(), cells["norm_spread"].read(), ctx)
    cells["mean_norm"].write(mean)
    cells["norm_spread"].write(spread)
    return limit(mean, spread, threshold).clamp(min=_TINY)


def _in_front(slot: Slot, cells: Cells) -> Tensor:
    """View a slot's numbers (batch, 1, entries) as (entries, batch, 1, 1)."""
    return cells[slot.name].read().movedim(2, 0).unsqueeze(3)


def _write(slot: Slot, in_front: Tensor, cells: Cells) -> None:
    cells[slot.name].write(in_front.squeeze(3).movedim(0, 2))


def _check(given: AcmsaoDocument) -> None:
    if isinstance(given.inner, Wrapper):
        raise OptimizerError(
            f"acmsao_document cannot be put around {part_name(given.inner)}",
            hint="prodigy and warm_start can be put around it; of acmsao one is enough",
        )
    if given.inner.guarded:
        raise OptimizerError(
            f"acmsao_document around {part_name(given.inner)} would remember twice: its momentum "
            "has banks of its own",
            hint="give the inner rule another momentum, or use it alone",
        )
    for option, value in (
        ("cycle_period", given.cycle_period),
        ("num_scales", given.num_scales),
        ("history_size", given.history_size),
        ("temperature", given.temperature),
    ):
        usual = getattr(AcmsaoDocument, option)
        check_positive(option, value, f"typical: {usual}")
    check_not_negative("magnitude_threshold", given.magnitude_threshold, "typical: 0.5")
    if not 0 <= given.sparsity_factor <= 1:
        raise OptimizerError(
            f"sparsity_factor must lie in [0, 1], not {given.sparsity_factor}",
            hint="the chance of what is not important; typical: 0.1",
        )
    if len(given.offloaded) != given.num_scales:
        raise OptimizerError(
            f"ram_offload has {len(given.offloaded)} flags for {given.num_scales} scales",
            hint="one for each scale, as (False, False, True)",
        )
    check_choice("similarity", given.similarity, Similarity)
    three_phases(given.cycle)
    if given.phases is not None and given.cycle != AcmsaoDocument.cycle:
        raise OptimizerError(
            "cycle and phases cannot both be given", hint="phases have their own factors"
        )
