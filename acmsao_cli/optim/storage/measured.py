"""The momentum counted in units of the second moment's square root: no scales, no division by 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.storage.blockwise import DRAWS, Blockwise
from acmsao_cli.optim.storage.codec import Codec, Pieces
from acmsao_cli.optim.storage.packing import look_up, pack, packed_length, signed, with_sign
from acmsao_cli.optim.storage.policy import ByRole, storage
from acmsao_cli.optim.storage.rank1 import Rank1, SignedRank1


@dataclass(frozen=True)
class Measured(Codec):
    """A sign and the size of value / unit, as one of 2^(bits-1) levels up to `top`.

    Levels grow as a power of their number; one bit beside the sign is too little for a zero among
    them. Rounding is to the nearest after up to half a `dither` step of noise. What is read is zero
    where the unit is, whatever the code. Where the numbers come from:
    docs/decisions/004-momentum-in-units-of-its-spread.md.
    """

    bits: int
    top: float
    power: float = 1.5
    dither: float = 0.5

    @property
    def measured(self) -> bool:
        """It is its point."""
        return True

    @property
    def packed(self) -> Mapping[str, int]:
        """Elements to an entry of `code`."""
        return {"code": 8 // self.bits}

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zero `code`, uint8 and packed: `bits` for each number and nothing else."""
        batch, rows, cols = shape
        length = packed_length(rows * cols, self.bits)
        return {"code": torch.zeros((batch, length), dtype=torch.uint8, device=device)}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh value."""
        assert unit is not None
        places = torch.arange(self._lowest, self._highest + 1, device=unit.device)
        levels = signed(places.div_(self._highest).pow_(self.power).mul_(self.top))
        found = look_up(pieces["code"], levels, self.bits, unit.shape[1] * unit.shape[2])
        return found.reshape(unit.shape).mul_(unit)

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Count the value in units; where the unit is zero nothing is kept."""
        assert unit is not None
        size = value.abs().div_(unit).nan_to_num_(nan=0.0).div_(self.top)
        place = size.clamp_(max=1.0).pow_(1 / self.power).mul_(self._highest)
        place.add_(0.5 - self._lowest)
        if self.dither:
            # Without it nine tenths of a small level round back to it: momentum would never decay.
            draw = noise.halves(value.shape).float()
            place.add_(draw.mul_(self.dither / DRAWS)).clamp_(min=0)
        index = place.floor_().clamp_(max=self._highest)
        codes = with_sign(index.to(torch.uint8), value < 0, self.bits)
        pieces["code"].copy_(pack(codes.flatten(1), self.bits))

    @property
    def _lowest(self) -> float:
        """Place of code 0 on the way to the top's."""
        return 0.5 if self.bits == 2 else 0.0

    @property
    def _highest(self) -> float:
        """Place of the last code."""
        return (1 << (self.bits - 1)) - 1 + self._lowest


@storage("factored_2bit")
def factored_2bit() -> ByRole:
    """Factored second moment, two bits for each element of its momentum; others as in factored."""
    measured = Measured(2, top=0.28, power=1.14, dither=0.0)
    return ByRole("factored_2bit", signed=SignedRank1(), positive=Rank1(), measured=measured)


@storage("factored_4bit")
def factored_4bit() -> ByRole:
    """Factored second moment, four bits for each element of its momentum and 4.125 of others."""
    others, measured = Blockwise(4, power=2), Measured(4, top=0.65)
    return ByRole("factored_4bit", signed=others, positive=Rank1(), measured=measured)


@storage("factored_8bit")
def factored_8bit() -> ByRole:
    """Factored second moment, a byte for each element of its momentum; others as in int8."""
    others = Blockwise(8, power=4)
    return ByRole("factored_8bit", signed=others, positive=Rank1(), measured=Measured(8, top=1.0))
