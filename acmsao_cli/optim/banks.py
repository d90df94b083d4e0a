"""What a scale remembers: the mean of what it was shown, or its last few with attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.optim.rules.base import Cells, Context
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Role, Slot

_TINY = 1e-30


def powers(number: int) -> tuple[int, ...]:
    """The document's scales: a visit every 4^i steps."""
    return tuple(4**index for index in range(number))


def flags_of(given: tuple[bool, ...] | bool | None, number: int) -> tuple[bool, ...]:
    """A flag for each scale, from as many, from one for all, or from None for no."""
    return given if isinstance(given, tuple) else (bool(given),) * number


class Bank(Protocol):
    """The history of one scale, which is shown something every `stride` steps."""

    stride: int
    host: bool  # whether it lives in host memory

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is remembered."""

    def value(self, query: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Return the bank's direction for a gradient; zero while it is empty; read only."""

    def take(
        self, shown: Tensor, taken: Tensor, horizon: Scalar, cells: Cells, ctx: Context
    ) -> None:
        """Take in what is shown where `taken`, bool (batch, 1, 1)."""


@dataclass(frozen=True)
class Mean(Bank):
    """H <- H + (x - H) / horizon: a memory of horizon x stride steps in one tensor."""

    stride: int
    host: bool = False
    visits: int = 1

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The mean."""
        return (Slot(f"bank_{self.stride}", host=self.host, visits=self.visits),)

    def value(self, query: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Return H."""
        return cells[self.slots[0].name].read()

    def take(
        self, shown: Tensor, taken: Tensor, horizon: Scalar, cells: Cells, ctx: Context
    ) -> None:
        """Move towards x."""
        cell = cells[self.slots[0].name]
        cell.write(cell.read().lerp_(shown, taken / horizon))


@dataclass(frozen=True)
class Ring(Bank):
    """The last `size` that were taken in, and attention over them: the document's history.

    H = sum_k softmax_k(cos(g, h_k) / (1 + age_k / stride) / temperature) h_k
    """

    stride: int
    size: int
    temperature: float
    host: bool = False

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The entries, and the step each was taken in at; 0 where there is none yet."""
        return (
            Slot(f"bank_{self.stride}", depth=self.size, host=self.host),
            Slot(f"taken_at_{self.stride}", Role.SCALAR, width=self.size),
        )

    def value(self, query: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Return the attended mean of the entries."""
        entries, steps = self._entries(cells), self._steps(cells)
        sums = ctx.totals(*_products(query, entries))
        similar = cosines(sums[1 : len(entries) + 1], sums[0], sums[len(entries) + 1 :])
        age = (ctx.step - steps) / self.stride
        scores = similar / ((1 + age) * self.temperature)
        weights = attention(scores, steps > 0)
        mixed = torch.zeros_like(query)
        for entry, weight in zip(entries, weights.unbind(), strict=True):
            mixed.addcmul_(entry, weight)
        return mixed

    def take(
        self, shown: Tensor, taken: Tensor, horizon: Scalar, cells: Cells, ctx: Context
    ) -> None:
        """Replace the oldest entry."""
        entries, (when,) = self.slots[0].cells, self.slots[1].cells
        steps = cells[when].read()
        here = torch.zeros_like(steps).scatter_(2, steps.argmin(2, keepdim=True), 1.0) * taken
        for name, share in zip(entries, here.split(1, 2), strict=True):
            cells[name].write(cells[name].read().lerp_(shown, share))
        cells[when].write(torch.where(here > 0, ctx.step, steps))

    def _entries(self, cells: Cells) -> list[Tensor]:
        return [cells[name].read() for name in self.slots[0].cells]

    def _steps(self, cells: Cells) -> Tensor:
        return torch.stack(cells[self.slots[1].name].read().split(1, 2))


def cosines(dots: Sequence[Tensor], square: Tensor, squares: Sequence[Tensor]) -> Tensor:
    """<g, h_k> / (|g| |h_k|) from the sums, stacked in front; 0 where one of them is zero."""
    return torch.stack(
        [
            dot / (square.sqrt() * other.sqrt()).clamp(min=_TINY)
            for dot, other in zip(dots, squares, strict=True)
        ]
    )


def attention(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the first axis of what is present; the weights are 0 where nothing is."""
    weights = scores.masked_fill(~present, -torch.inf).softmax(0)
    return torch.where(present, weights, 0.0)


def _products(query: Tensor, entries: Sequence[Tensor]) -> list[Tensor]:
    """g^2, then g h_k and h_k^2 of all entries, whose sums say how alike they are."""
    return [query * query, *(query * one for one in entries), *(one * one for one in entries)]
