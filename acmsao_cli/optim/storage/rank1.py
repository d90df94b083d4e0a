"""Row and column sums instead of the matrix, and one bit for each sign."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.codec import UNCUT, Codec, Full, Pieces
from acmsao_cli.optim.storage.dense import Half
from acmsao_cli.optim.storage.packing import pack, packed_length, unpack
from acmsao_cli.optim.storage.policy import ByRole, storage

_SMALLEST: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Rank1(Codec):
    """Rows' and columns' sums of |x| on the natural matrix (as Adafactor, arXiv:1804.04235).

    Exact for a value of rank one; 4 (rows + cols) bytes instead of 4 rows cols. A vector, which has
    no rows to add up, is folded into a matrix nearly as high as wide (SMMF, arXiv:2412.08894).
    """

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero sums: `row` (batch, rows, 1) and `col` (batch, 1, cols).

        Those of a folded vector have an axis of length 1 more: (batch, 1, rows, 1) and so on.
        """
        batch, rows, cols = shape
        folded = folded_shape(rows, cols)
        axis = () if folded == (rows, cols) else (1,)
        return {
            "row": torch.zeros((batch, *axis, folded[0], 1), dtype=torch.float32, device=device),
            "col": torch.zeros((batch, *axis, 1, folded[1]), dtype=torch.float32, device=device),
        }

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh outer product, positive where row and column are."""
        row, col = pieces["row"], pieces["col"]
        value = (row * col).clamp_(min=_SMALLEST)  # by a number: twice as fast as by rows
        value.mul_((row > 0).to(row.dtype)).mul_((col > 0).to(col.dtype))
        return value if value.ndim == 3 else value.flatten(2)

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store the sums of a non-negative value."""
        if pieces["row"].ndim == 4:
            value = value.reshape(len(value), 1, pieces["row"].shape[2], pieces["col"].shape[3])
        row, col = value.sum(-1, keepdim=True), value.sum(-2, keepdim=True)
        total = row.sum(-2, keepdim=True)  # only row is scaled: row * col keeps the sum
        pieces["row"].copy_(_positive_where(row > 0, row / torch.where(total > 0, total, 1.0)))
        pieces["col"].copy_(col)

    def join(self, pieces: Pieces, blocks: Sequence[Pieces]) -> None:
        """Add up the columns' sums; each block's rows are shares of that block's sum alone."""
        row, col = pieces["row"], pieces["col"]
        if row.shape[-2] == 1:  # blocks of columns: a lone row is 1, or 0 if nothing is there
            row.copy_(torch.stack([block["row"] for block in blocks]).amax(0))
            return
        together = torch.stack([block["col"] for block in blocks])
        sums = together.sum(-1, keepdim=True)
        total = sums.sum(0)
        shares = sums / torch.where(total > 0, total, 1.0)
        for block, share in zip(blocks, shares.unbind(), strict=True):
            block["row"].copy_(_positive_where(block["row"] > 0, block["row"] * share))
        col.copy_(together.sum(0))


@dataclass(frozen=True)
class SignedRank1(Codec):
    """Rank-1 magnitude and one sign bit for each element (SMMF, arXiv:2412.08894)."""

    magnitude: Rank1 = field(default_factory=Rank1)

    @property
    def packed(self) -> Mapping[str, int]:
        """Eight signs to a byte."""
        return {"sign": 8}

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero sums and the packed `sign`, uint8 (batch, ceil(rows cols / 8))."""
        batch, rows, cols = shape
        length = packed_length(rows * cols, 1)
        sign = torch.zeros((batch, length), dtype=torch.uint8, device=device)
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

    def join(self, pieces: Pieces, blocks: Sequence[Pieces]) -> None:
        """Join the sums; the signs are in their places."""
        self.magnitude.join(pieces, blocks)


@functools.cache
def near_square(count: int) -> tuple[int, int]:
    """Rows and columns of the squarest matrix with exactly `count` elements, at least as wide."""
    rows = next((n for n in range(math.isqrt(count), 1, -1) if count % n == 0), 1)
    return rows, count // rows


def folded_shape(rows: int, cols: int) -> tuple[int, int]:
    """The matrix whose rows and columns are added up; a vector's is folded, so that blocks of any
    size can hold whole rows of it.

    One of prime length cannot be (its matrix has a single row), one that folds into too long rows
    is not: `col` is then every number, and factored state as large as fp32's with its signs more.
    """
    folded = near_square(cols) if rows == 1 else (rows, cols)
    return folded if folded[1] <= UNCUT else (rows, cols)


def pack_signs(value: Tensor) -> Tensor:
    """Pack `value >= 0` of each matrix, eight to a byte, the first in the lowest bit."""
    return pack((value >= 0).flatten(1).to(torch.uint8), 1)


def unpack_signs(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return +1 and -1 as int8 of the given (batch, rows, cols) shape."""
    bits = unpack(packed, 1, shape[1] * shape[2])
    return bits.view(torch.int8).mul_(2).sub_(1).reshape(shape)


def _positive_where(occupied: Tensor, scaled: Tensor) -> Tensor:
    """Undo what underflowed in scaling, in place."""
    return scaled.clamp_(min=_SMALLEST).mul_(occupied)


@storage("factored")
def factored() -> ByRole:
    """Row and column sums, and one sign bit for each element of a momentum."""
    return ByRole("factored", signed=SignedRank1(), positive=Rank1())


@storage("factored_second")
def factored_second() -> ByRole:
    """Row and column sums of a second moment, the momentum in bf16 as in Adafactor."""
    return ByRole("factored_second", signed=Half(), positive=Rank1())


@storage("factored_second_fp32")
def factored_second_fp32() -> ByRole:
    """Row and column sums of a second moment, the momentum exactly."""
    return ByRole("factored_second_fp32", signed=Full(), positive=Rank1())
