"""What a rule remembers: named slots, and the little that storage may know about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """All that storage may know about a slot."""

    SIGNED = "signed"  # a momentum: any sign, tolerates loss
    POSITIVE = (
        "positive"  # a second moment: tolerates loss, but a positive number never becomes zero
    )
    EXACT = "exact"  # anchors, copies of weights: never with loss
    SCALAR = "scalar"  # one number for each parameter


@dataclass(frozen=True)
class Slot:
    """One thing to remember for each parameter; `depth` > 1 is a bank, read one entry at a time."""

    name: str
    role: Role = Role.SIGNED
    depth: int = 1

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the entries' cells: `name`, or `name.0`, `name.1`, ... in a bank."""
        if self.depth == 1:
            return (self.name,)
        return tuple(f"{self.name}.{index}" for index in range(self.depth))

    def shape(self, batch: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Shape of one entry's dense value for a batch of (rows, cols) parameters."""
        return (batch, 1, 1) if self.role is Role.SCALAR else (batch, rows, cols)
