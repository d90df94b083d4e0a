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
    SCALAR = "scalar"  # one number for each parameter


class Extent(Enum):
    """How many numbers a slot keeps for a (rows, cols) parameter."""

    FULL = "full"  # (rows, cols)
    ROW = "row"  # (rows, 1)
    COL = "col"  # (1, cols)
    LEFT = "left"  # (rows, rows)
    RIGHT = "right"  # (cols, cols)


@dataclass(frozen=True)
class Slot:
    """One thing to remember for each parameter; `depth` > 1 is a bank, read one entry at a time.

    `gradient_like`: its numbers are of the size of gradients, so they may be counted in units of a
    root mean square of gradients. `unit` names the slot whose square root is that unit.
    """

    name: str
    role: Role = Role.SIGNED
    depth: int = 1
    extent: Extent = Extent.FULL
    gradient_like: bool = False
    unit: str | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the entries' cells: `name`, or `name.0`, `name.1`, ... in a bank."""
        if self.depth == 1:
            return (self.name,)
        return tuple(f"{self.name}.{index}" for index in range(self.depth))

    def shape(self, batch: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Shape of one entry's dense value for a batch of (rows, cols) parameters."""
        if self.role is Role.SCALAR:
            return batch, 1, 1
        match self.extent:
            case Extent.ROW:
                return batch, rows, 1
            case Extent.COL:
                return batch, 1, cols
            case Extent.LEFT:
                return batch, rows, rows
            case Extent.RIGHT:
                return batch, cols, cols
        return batch, rows, cols


def in_units_of(unit: str, slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """The slots, those that are gradient-like measured by the square root of slot `unit`."""
    return tuple(replace(slot, unit=unit) if slot.gradient_like else slot for slot in slots)
