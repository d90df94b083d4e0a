"""Row and column sums instead of the matrix, and one bit for each sign."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.codec import Codec, Pieces
from acmsao_cli.optim.storage.policy import ByRole, storage

_SMALLEST: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Rank1(Codec):
    """Rows' and columns' sums of |x| on the natural matrix (as Adafactor, arXiv:1804.04235).

    Exact for a value of rank one. A vector is one row and so is stored exactly, at 4 bytes for each
    element and 4 for the row: factoring saves bytes on matrices only, 4 (rows + cols) instead of 4
    rows cols.
    """

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero sums: `row` (batch, rows, 1) and `col` (batch, 1, cols)."""
        batch, rows, cols = shape
        return {
            "row": torch.zeros((batch, rows, 1), dtype=torch.float32, device=device),
            "col": torch.zeros((batch, 1, cols), dtype=torch.float32, device=device),
        }

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh outer product, positive where row and column are."""
        row, col = pieces["row"], pieces["col"]
        return (row * col).clamp_(min=(row > 0) * _SMALLEST).mul_(col > 0)

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store the sums of a non-negative value."""
        row, col = value.sum(2, keepdim=True), value.sum(1, keepdim=True)
        total = row.sum(1, keepdim=True)
        occupied = row > 0
        row.div_(torch.where(total > 0, total, 1.0))  # only row is scaled: row * col keeps the sum
        pieces["row"].copy_(row.clamp_(min=_SMALLEST).mul_(occupied))
        pieces["col"].copy_(col)


@dataclass(frozen=True)
class SignedRank1(Codec):
    """Rank-1 magnitude and one sign bit for each element (SMMF, arXiv:2412.08894)."""

    magnitude: Rank1 = field(default_factory=Rank1)

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero sums and the packed `sign`, uint8 (batch, ceil(rows cols / 8))."""
        batch, rows, cols = shape
        num_bytes = -(-rows * cols // 8)
        sign = torch.zeros((batch, num_bytes), dtype=torch.uint8, device=device)
        return {**self.magnitude.allocate(shape, device), "sign": sign}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh signed outer product."""
        magnitude = self.magnitude.read(pieces)
        return magnitude.mul_(unpack_signs(pieces["sign"], magnitude.shape))

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store sums of magnitudes and the signs."""
        self.magnitude.write(pieces, value.abs(), noise)
        pieces["sign"].copy_(pack_signs(value))


def pack_signs(value: Tensor) -> Tensor:
    """Pack `value >= 0` of each matrix, eight to a byte, the first in the lowest bit."""
    bits = (value >= 0).flatten(1).to(torch.uint8)
    missing = -bits.shape[1] % 8
    if missing:
        bits = functional.pad(bits, (0, missing))
    octets = bits.view(bits.shape[0], bits.shape[1] // 8, 8) << _bit_positions(value.device)
    return octets.sum(2, dtype=torch.uint8)


def unpack_signs(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return +1 and -1 as int8 of the given (batch, rows, cols) shape."""
    bits = (packed.unsqueeze(2) >> _bit_positions(packed.device)).bitwise_and_(1)
    signs = bits.view(torch.int8).mul_(2).sub_(1)
    return signs.flatten(1)[:, : shape[1] * shape[2]].reshape(shape)


def _bit_positions(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)  # made on the device: no copy, no wait


@storage("factored")
def factored() -> ByRole:
    """Row and column sums, and one sign bit for each element of a momentum."""
    return ByRole("factored", signed=SignedRank1(), positive=Rank1())
