"""Numbers in few bits, as shares of the largest in their block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.codec import Codec, Pieces, shape_only
from acmsao_cli.optim.storage.packing import pack, packed_length, split_sign, unpack, with_sign
from acmsao_cli.optim.storage.policy import ByRole, storage

BLOCK: Final = 256  # elements that share a scale, in the order of memory
_SMALLEST: Final = torch.finfo(torch.float32).tiny
DRAWS: Final = 1 << 16  # what Noise.halves tells apart


@dataclass(frozen=True)
class Blockwise(Codec):
    """Codes k = 0..K of `bits` bits, one of them a sign: (k / K)^power of the block's largest |x|.

    The power gives small numbers fine steps (after Dettmers et al. 2022, arXiv:2110.02861): with
    even ones, a second moment beside a large one is lost, which destroys training. The largest is
    exact, so writing what was read changes nothing. Rounding is by chance and unbiased, so that a
    slow average still moves; but of positive numbers without a sign, those too small for the first
    code are rounded up to it.
    """

    bits: int
    power: float
    signed: bool = True

    @property
    def packed(self) -> Mapping[str, int]:
        """Elements to an entry of `code` and of `scale`."""
        return {"code": 8 // self.bits, "scale": BLOCK}

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero `code`, uint8, and `scale`, fp32, both packed; and `shape`, without bytes."""
        batch, rows, cols = shape
        count = rows * cols
        length, blocks = packed_length(count, self.bits), -(-count // BLOCK)
        return {
            "code": torch.zeros((batch, length), dtype=torch.uint8, device=device),
            "scale": torch.zeros((batch, blocks), dtype=torch.float32, device=device),
            "shape": shape_only(shape, device),
        }

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh value."""
        batch, rows, cols, _ = pieces["shape"].shape
        codes = unpack(pieces["code"], self.bits, rows * cols)
        signs = split_sign(codes, self.bits)[1] if self.signed else codes > 0
        value = _in_blocks(self._share(codes)).mul_(pieces["scale"].unsqueeze(2))
        value = value.flatten(1)[:, : rows * cols]
        if not self.signed:
            value.clamp_(min=_SMALLEST)
        return value.mul_(signs).reshape(batch, rows, cols)

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Store each block's largest magnitude and everything's share of it."""
        flat = value.flatten(1)
        magnitude = _in_blocks(flat.abs())
        scale = magnitude.amax(2, keepdim=True)
        magnitude.div_(torch.where(scale > 0, scale, 1.0))
        share = magnitude.flatten(1)[:, : flat.shape[1]]
        codes = self._drawn(share, noise, value.shape).to(torch.uint8)
        if self.signed:
            with_sign(codes, flat < 0, self.bits)
        else:
            codes.clamp_(min=1).mul_(flat > 0)
        pieces["code"].copy_(pack(codes, self.bits))
        pieces["scale"].copy_(scale.squeeze(2))

    @property
    def _highest(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    def _share(self, index: Tensor) -> Tensor:
        return (index / self._highest).pow_(self.power)

    def _drawn(self, share: Tensor, noise: Noise, shape: torch.Size) -> Tensor:
        """The code below or the one above, by chance; `share` is used up."""
        below = share.pow(1 / self.power).mul_(self._highest).floor_().clamp_(0, self._highest - 1)
        low, gap = self._share(below), self._share(below + 1)
        odds = share.sub_(low).div_(gap.sub_(low)).mul_(DRAWS)
        del low, gap
        # Never 0 and never all of them: a number that has a code keeps it.
        return below.add_(odds > noise.halves(shape).flatten(1) + (DRAWS // 2 + 0.5))


def _in_blocks(flat: Tensor) -> Tensor:
    """(batch, n) as (batch, blocks, BLOCK), with zeros at the end."""
    batch, count = flat.shape
    blocks = -(-count // BLOCK)
    if blocks * BLOCK != count:
        flat = functional.pad(flat, (0, blocks * BLOCK - count))
    return flat.view(batch, blocks, BLOCK)


@storage("int8")
def int8() -> ByRole:
    """One byte for each number, a scale for 256: momentum and second moment in uneven steps."""
    return ByRole(
        "int8", signed=Blockwise(8, power=4), positive=Blockwise(8, power=4, signed=False)
    )
