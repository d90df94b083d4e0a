"""How a slot becomes plain tensors and back; and the cell through which a rule sees one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise

Pieces = dict[str, Tensor]  # what is really stored; every piece has the batch as its leading axis
State = dict[str, Pieces]  # one entry for each cell


class Codec(Protocol):
    """Stateless map between a dense fp32 value (batch, rows, cols) and its pieces.

    Laws: fresh pieces read as zero; zero stays zero; signs survive; writing what was read changes
    nothing; in a POSITIVE slot `x > 0` implies `read(write(x)) > 0` for every normal x. `write`
    does not change `value`.
    """

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return the pieces of a value that is zero."""

    def read(self, pieces: Pieces) -> Tensor:
        """Return the dense value; it may be the stored tensor itself."""

    def write(self, pieces: Pieces, value: Tensor, noise: Noise) -> None:
        """Store `value` into the pieces, in place."""


@dataclass(frozen=True)
class Full:
    """Four bytes for each number, nothing lost; every policy keeps exact slots so."""

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zeros."""
        return {"value": torch.zeros(shape, dtype=torch.float32, device=device)}

    def read(self, pieces: Pieces) -> Tensor:
        """Return the state itself."""
        return pieces["value"]

    def write(self, pieces: Pieces, value: Tensor, noise: Noise) -> None:
        """Copy, which is free when the value is the state itself."""
        pieces["value"].copy_(value)


class Cell:
    """One slot of a batch of parameters as a rule sees it, for the length of one step."""

    def __init__(self, codec: Codec, pieces: Pieces, noise: Noise) -> None:
        self._codec, self._pieces, self._noise = codec, pieces, noise
        self._value: Tensor | None = None  # decoded once, however often it is read

    def read(self) -> Tensor:
        """Return the fp32 value. It may be the state itself: change it only to write it back."""
        if self._value is None:
            self._value = self._codec.read(self._pieces)
        return self._value

    def write(self, value: Tensor) -> None:
        """Store a value; it is left as it was."""
        self._codec.write(self._pieces, value, self._noise)
        self._value = None
