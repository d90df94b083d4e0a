"""How a slot becomes plain tensors and back; and the cell through which a rule sees one."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise

Pieces = dict[str, Tensor]  # what is really stored; every piece has the batch as its leading axis
State = dict[str, Pieces]  # one entry for each cell

UNCUT: Final = 1 << 16  # parameters with at most so many elements are never stepped in blocks


class Codec(Protocol):
    """Stateless map between a dense fp32 value (batch, rows, cols) and its pieces.

    Laws: fresh pieces read as zero; zero stays zero; signs survive; writing what was read changes
    nothing; in a POSITIVE slot `x > 0` implies `read(write(x)) > 0` for every normal x. `write`
    does not change `value`. `unit` (batch, rows, cols), not negative, is given to a codec that is
    `measured`: the same when a value is read as when it was written.

    A piece is (batch, rows or 1, cols or 1), or packed: (batch, n) with `packed` elements, in the
    order of memory, to each of the n entries; at most 256 elements. A codec that is `whole` is free
    in this.
    """

    @property
    def packed(self) -> Mapping[str, int]:
        """Elements to an entry, by packed piece."""
        return {}

    @property
    def measured(self) -> bool:
        """Whether it needs a unit."""
        return False

    @property
    def whole(self) -> bool:
        """Whether it cannot be written in blocks of rows."""
        return False

    @property
    def offloaded(self) -> bool:
        """Whether its pieces live in host memory, and are read and written where `stage` puts."""
        return False

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return the pieces of a value that is zero."""

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return the dense value; it may be the stored tensor itself."""

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store `value` into the pieces, in place."""

    def join(self, pieces: Pieces, blocks: Sequence[Pieces]) -> None:
        """Put together what was written block by block.

        A block's pieces are views where they belong to its rows alone, copies where they are shared
        by all rows: those are to be written back.
        """
        for name, piece in pieces.items():
            if blocks[-1][name].shape == piece.shape:
                piece.copy_(blocks[-1][name])

    def stage(self, pieces: Pieces, device: torch.device) -> Pieces:
        """Return the pieces on the device that computes; the very pieces unless offloaded."""
        return pieces

    def unstage(self, pieces: Pieces, staged: Pieces) -> None:
        """Bring home what was written to staged pieces."""
        return None


def shape_only(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """A piece (batch, rows, cols, 0): no elements, it only says a shape that others do not."""
    return torch.zeros((*shape, 0), dtype=torch.uint8, device=device)


@dataclass(frozen=True)
class Full(Codec):
    """Four bytes for each number, nothing lost; every policy keeps exact slots so."""

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zeros."""
        return {"value": torch.zeros(shape, dtype=torch.float32, device=device)}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return the state itself."""
        return pieces["value"]

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Copy, which is free when the value is the state itself."""
        pieces["value"].copy_(value)


@dataclass(frozen=True)
class Summed(Full):
    """One number to which every block adds its own."""

    def join(self, pieces: Pieces, blocks: Sequence[Pieces]) -> None:
        """Add the blocks' numbers up."""
        pieces["value"].copy_(torch.stack([block["value"] for block in blocks]).sum(0))


@dataclass(frozen=True)
class Words(Codec):
    """Whole numbers from -32768 to 32767 in two bytes each."""

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zeros."""
        return {"value": torch.zeros(shape, dtype=torch.int16, device=device)}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh fp32 copy, which holds them exactly."""
        return pieces["value"].float()

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store the numbers."""
        pieces["value"].copy_(value)


class Cell:
    """One slot of a batch of parameters as a rule sees it, for the length of one step.

    What is offloaded is brought when it is first read or written, and goes home when it was
    written. A measured cell has a `ruler`, the cell whose square root is its unit. It is read
    before the ruler changes and stored after, whatever the rule's order: that is what `close` is
    for.
    """

    def __init__(
        self, codec: Codec, pieces: Pieces, noise: Noise, ruler: Cell | None = None
    ) -> None:
        self._codec, self._noise = codec, noise
        self.settle(pieces)
        self._ruler = ruler if codec.measured else None
        # What this one measures. Weak: a cycle would keep a block's values until it is collected.
        self._measured: list[weakref.ref[Cell]] = []
        self._value: Tensor | None = None  # decoded once, however often it is read
        self._pending: Tensor | None = None  # to be stored by `close`
        if self._ruler is not None:
            self._ruler._measured.append(weakref.ref(self))

    def read(self) -> Tensor:
        """Return the fp32 value. It may be the state itself: change it only to write it back."""
        for cell in self._measures():  # while this is still their unit
            cell._decode()
        return self._decode()

    def write(self, value: Tensor) -> None:
        """Store a value; it is left as it was."""
        if self._ruler is not None:
            self._value = self._pending = value
            return
        for cell in self._measures():  # stored anew even if the rule leaves them as they were
            cell._pending = cell._decode() if cell._pending is None else cell._pending
        self._store(value)

    def release(self) -> None:
        """Keep nothing decoded, for a rule that reads more than should be in memory at once.

        The next read decodes again: not for what is measured, whose ruler may have changed.
        """
        if self._ruler is None:
            self._value = None

    def settle(self, pieces: Pieces) -> None:
        """Be what `pieces` hold from now on."""
        self._home, self._value = pieces, None
        self._brought: Pieces | None = None

    def close(self) -> None:
        """Store what waited for the ruler."""
        if self._pending is None:
            return
        self._store(self._pending, self._unit())
        self._pending = None

    def _store(self, value: Tensor, unit: Tensor | None = None) -> None:
        pieces = self._staged()
        self._codec.write(pieces, value, self._noise, unit)
        self._codec.unstage(self._home, pieces)
        self._value = None

    def _staged(self) -> Pieces:
        if self._brought is None:
            self._brought = self._codec.stage(self._home, self._noise.numbers.device)
        return self._brought

    def _measures(self) -> Iterator[Cell]:
        for reference in self._measured:
            cell = reference()
            assert cell is not None, "a step keeps all of its cells"
            yield cell

    def _decode(self) -> Tensor:
        if self._value is None:
            self._value = self._codec.read(self._staged(), self._unit())
        return self._value

    def _unit(self) -> Tensor | None:
        return None if self._ruler is None else self._ruler._decode().sqrt()
