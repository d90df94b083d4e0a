"""What a rule remembers: named slots, and the little that storage may know about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum


class Role(Enum):
    """All that storage may know about a slot's values."""

    SIGNED = "signed"  # a momentum: any sign, tolerates loss
    POSITIVE = (
        "positive"  # a second moment: tolerates loss, but a positive number never becomes zero
    )
    EXACT = "exact"  # anchors, copies of weights, bases: never with loss
    SCALAR = "scalar"  # a number for each parameter, or a few
    WORD = "word"  # whole numbers of 16 bits with their sign, never with loss


class Extent(Enum):
    """How many numbers a slot keeps for a (rows, cols) parameter."""

    FULL = "full"  # (rows, cols)
    ROW = "row"  # (rows, 1)
    COL = "col"  # (1, cols)
    LEFT = "left"  # (rows, rows); of a vector (1, 1)
    RIGHT = "right"  # (cols, cols); of a vector (1, 1)


@dataclass(frozen=True)
class Slot:
    """One thing to remember for each parameter; `depth` > 1 is a bank, read one entry at a time.

    `gradient_like`: its numbers are of the size of gradients, so they may be counted in units of a
    root mean square of gradients. `unit` names the slot whose square root is that unit. A LEFT or
    RIGHT side longer than `limit` is not kept: (1, 1). `stride` > 1 keeps every n-th column of
    a matrix; of a vector everything. What is `summed` is written as the sum of the entries at hand
    and read as that of the whole parameter, at the next step. A `host` slot lives in host memory
    whatever the storage; it is asked for only at steps that `visits` divides. A SCALAR slot has
    `width` numbers.
    """

    name: str
    role: Role = Role.SIGNED
    depth: int = 1
    extent: Extent = Extent.FULL
    gradient_like: bool = False
    unit: str | None = None
    limit: int | None = None
    stride: int = 1
    summed: bool = False
    host: bool = False
    visits: int = 1
    width: int = 1

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the entries' cells: `name`, or `name.0`, `name.1`, ... in a bank."""
        if self.depth == 1:
            return (self.name,)
        return tuple(f"{self.name}.{index}" for index in range(self.depth))

    def shape(self, batch: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Shape of one entry's dense value for a batch of (rows, cols) parameters."""
        if self.role is Role.SCALAR:
            return batch, 1, self.width
        match self.extent:
            case Extent.ROW:
                return batch, rows, 1
            case Extent.COL:
                return batch, 1, cols
            case Extent.LEFT:
                return batch, *self._square(rows, cols)
            case Extent.RIGHT:
                return batch, *self._square(cols, rows)
        return batch, rows, cols if rows == 1 else -(-cols // self.stride)

    def _square(self, side: int, other: int) -> tuple[int, int]:
        kept = other > 1 and (self.limit is None or side <= self.limit)
        return (side, side) if kept else (1, 1)


def in_units_of(unit: str, slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """The slots, those that are gradient-like measured by the square root of slot `unit`."""
    return tuple(replace(slot, unit=unit) if slot.gradient_like else slot for slot in slots)
