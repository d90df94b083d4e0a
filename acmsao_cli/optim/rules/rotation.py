"""Bases in which a matrix of gradients has nearly independent entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.rules.base import Cells, Context
from acmsao_cli.optim.slots import Extent, Role, Slot

# An orthogonal matrix for each side, in its columns; None leaves the side as it is.
Bases: TypeAlias = tuple[Tensor | None, Tensor | None]

_ROUNDING: Final = 4 * torch.finfo(torch.float32).eps  # of a product, relative to its factors
SIDES: Final = {"left": Extent.LEFT, "right": Extent.RIGHT}


def side_slots(name: str, limit: int, sides: tuple[str, ...] = tuple(SIDES)) -> tuple[Slot, ...]:
    """A square matrix for each side that is not longer than `limit`."""
    return tuple(
        Slot(f"{side}_{name}", Role.EXACT, extent=SIDES[side], limit=limit) for side in sides
    )


def exactly(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """The slots, kept without loss; the few numbers of a parameter are anyway."""
    return tuple(
        slot if slot.role is Role.SCALAR else replace(slot, role=Role.EXACT, gradient_like=False)
        for slot in slots
    )


def is_kept(slot: Slot, ctx: Context) -> bool:
    """Whether the slot's side of this parameter is rotated: of a matrix, and not too long."""
    side, other = (ctx.rows, ctx.cols) if slot.extent is Extent.LEFT else (ctx.cols, ctx.rows)
    return other > 1 and slot.shape(1, ctx.rows, ctx.cols)[1] == side


def rotate(x: Tensor, bases: Bases, ctx: Context) -> Tensor:
    """P' x Q: coordinates in the bases, zero where they are no more than rounding errors.

    A direction without gradient must not move: divided by their root mean square, errors would.
    """
    left, right = bases
    if left is None and right is None:
        return x
    turned = x if left is None else left.mT @ x
    turned = turned if right is None else turned @ right
    return turned.masked_fill_(turned.abs() <= _ROUNDING * ctx.norm(x), 0.0)


def rotate_back(x: Tensor, bases: Bases) -> Tensor:
    """P x Q', the inverse."""
    left, right = bases
    x = x if left is None else left @ x
    return x if right is None else x @ right.mT


def renew(
    names: Sequence[str],
    turned: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    every: int,
    cells: Cells,
    ctx: Context,
) -> None:
    """Put `turned(old)` into the cells of these names at the first step, then every so many.

    Where the step is a tensor nobody may wait for, it is computed always and taken when due.
    """
    due = ctx.first or (ctx.step - 1) % every == 0
    if not isinstance(due, Tensor) and not due:
        return
    old = tuple(cells[name].read() for name in names)
    for name, before, after in zip(names, old, turned(old), strict=True):
        cells[name].write(torch.where(due, after, before) if isinstance(due, Tensor) else after)


def check_rotation(name: str, every: int, limit: int) -> None:
    """Refuse a period or a limit below 1."""
    if every < 1 or limit < 1:
        raise OptimizerError(
            f"{name} needs `every` and `limit` of at least 1, not {every} and {limit}",
            hint="`every` counts steps between new bases, `limit` the longest side to rotate",
        )
