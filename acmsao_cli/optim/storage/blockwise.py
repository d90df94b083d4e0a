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
from acmsao_cli.optim.storage.packing import (
    look_up,
    pack,
    packed_length,
    signed,
    with_sign,
)
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
        code, count, levels = pieces["code"], rows * cols, self._levels(pieces["code"].device)
        values = signed(levels) if self.signed else levels
        value = _in_blocks(look_up(code, values, self.bits, count))
        value = value.mul_(pieces["scale"].unsqueeze(2)).flatten(1)[:, :count]
        if not self.signed:
            least = torch.where(levels > 0, _SMALLEST, 0.0)
            value = torch.maximum(value, look_up(code, least, self.bits, count))
        return value.reshape(batch, rows, cols)

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
            codes.clamp_(min=1).mul_((flat > 0).view(torch.uint8))
        pieces["code"].copy_(pack(codes, self.bits))
        pieces["scale"].copy_(scale.squeeze(2))

    @property
    def _highest(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    def _levels(self, device: torch.device) -> Tensor:
        """The share that each code without a sign stands for."""
        codes = torch.arange(self._highest + 1, dtype=torch.float32, device=device)
        return codes.div_(self._highest).pow_(self.power)

    def _drawn(self, share: Tensor, noise: Noise, shape: torch.Size) -> Tensor:
        """The code below or the one above, by chance, int32; `share` is used up."""
        levels = self._levels(share.device)
        place = share.pow(1 / self.power).mul_(self._highest).floor_()
        below = place.clamp_(0, self._highest - 1).int()
        del place
        flat = below.view(-1)
        odds = share.sub_(levels.index_select(0, flat).view_as(share))
        odds.div_(levels.diff().index_select(0, flat).view_as(share)).mul_(DRAWS)
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
