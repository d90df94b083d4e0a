"""Factored along a matrix as near a square as can be, instead of the parameter's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.codec import Codec, Pieces, shape_only
from acmsao_cli.optim.storage.policy import ByRole, storage
from acmsao_cli.optim.storage.rank1 import Rank1, SignedRank1, near_square


@dataclass(frozen=True)
class Square(Codec):
    """The elements in a matrix of nearly as many rows as columns (SMMF, arXiv:2412.08894).

    Fewer sums for thin matrices, whose rows and columns then mean nothing: less faithful than their
    own.
    """

    inner: Rank1 | SignedRank1

    @property
    def whole(self) -> bool:
        """A block of rows is no block of the square's."""
        return True

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return the inner pieces; and `shape`, without bytes, as the rows are not to be seen."""
        batch, rows, cols = shape
        inner = self.inner.allocate((batch, *near_square(rows * cols)), device)
        return {**inner, "shape": shape_only(shape, device)}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh value of the recorded shape."""
        return self.inner.read(pieces).reshape(pieces["shape"].shape[:3])

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store the sums over the square."""
        batch, rows, cols = value.shape
        self.inner.write(pieces, value.reshape(batch, *near_square(rows * cols)), noise)


@storage("factored_square")
def factored_square() -> ByRole:
    """As factored, along a near-square matrix: smaller for thin matrices only."""
    return ByRole("factored_square", signed=Square(SignedRank1()), positive=Square(Rank1()))
