"""Random bits as a pure function of (seed, step, parameter number, stream, element).

No generator runs, so nothing has to be saved, and stepping during backward, stacked, one by one or
after a resume draws the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

_MULTIPLIERS: Final = (0x85EBCA6B, 0xC2B2AE35)  # murmur3's 32-bit finaliser
_GOLDEN: Final = 0x9E3779B9  # odd, so multiplying by it permutes the 32-bit integers
_APART: Final = 0x2545F491  # odd: keeps the parameters' keys far from each other
_LOW_32_BITS: Final = 0xFFFFFFFF


def hash_numbers(*numbers: int) -> int:
    """Mix whole numbers of up to 64 bits into one signed 32-bit word, on the host."""
    word = 0
    for number in numbers:
        for half in (number & _LOW_32_BITS, (number >> 32) & _LOW_32_BITS):
            word = _finalise_int((word * _GOLDEN + half + 1) & _LOW_32_BITS)
    return _as_signed(word)


@dataclass(frozen=True)
class Noise:
    """Hashed noise of one step for a batch of parameters; costs nothing until bits are drawn.

    `numbers` is int32 (batch, 1, 1); `salt` is `hash_numbers(seed, step)`, a 0-d int32 tensor under
    compile; streams are independent: 0 for the weights, 1 onwards for the state. `offset`, even,
    is the number of the first element where only a block of the parameter is at hand.
    """

    numbers: Tensor
    salt: int | Tensor
    index: int = 0
    offset: int = 0

    def stream(self, index: int) -> Noise:
        """Return the stream of this index."""
        return Noise(self.numbers, self.salt, index, self.offset)  # replace() is slow

    def starting_at(self, offset: int) -> Noise:
        """Return the noise of the elements from `offset` on."""
        return replace(self, offset=offset)

    def halves(self, shape: torch.Size) -> Tensor:
        """Draw 16 bits for each element of a (batch, rows, cols) tensor, as int16."""
        batch, rows, cols = shape
        numel = rows * cols
        keys = (self.numbers * _APART).add_(self.salt).add_(hash_numbers(self.index))
        # A word serves two elements: hashing is the cost of stochastic rounding.
        first = self.offset // 2
        stop = first + (numel + 1) // 2
        counter = torch.arange(first, stop, dtype=torch.int32, device=keys.device)
        words = finalise(counter.mul_(_as_signed(_GOLDEN)).bitwise_xor(keys.view(batch, 1)))
        return words.view(torch.int16)[:, :numel].reshape(shape)


def finalise(words: Tensor) -> Tensor:
    """Murmur3's finaliser on int32, in place; masks stand in for the unsigned shift torch lacks."""
    upper = torch.empty_like(words)  # one for all three: allocating costs more than computing

    def mix(shift: int, mask: int) -> Tensor:
        torch.bitwise_right_shift(words, shift, out=upper).bitwise_and_(mask)
        return words.bitwise_xor_(upper)

    mix(16, 0xFFFF).mul_(_as_signed(_MULTIPLIERS[0]))
    mix(13, 0x7FFFF).mul_(_as_signed(_MULTIPLIERS[1]))
    return mix(16, 0xFFFF)


def round_stochastic(value: Tensor, noise: Noise) -> Tensor:
    """Round fp32 (batch, rows, cols) to bf16, up or down by chance, so that the mean is exact.

    Numbers bf16 can hold stay as they are; NaN stays NaN and infinity infinite.
    """
    # fp32's lower half is what bf16 drops: adding 16 random bits carries into the upper half with
    # the right odds.
    bits = noise.halves(value.shape).to(torch.int32)
    bits.add_(value.view(torch.int32)).add_(0x8000)  # the draw is signed
    rounded = bits.bitwise_and_(-0x10000).view(torch.float32)
    return keep_nan(rounded, value).to(torch.bfloat16)


def keep_nan(rounded: Tensor, value: Tensor) -> Tensor:
    """Put the NaNs of `value` back into `rounded`, in place.

    One with a full mantissa (the usual one on GPUs) overflows into zero when its bits are counted
    up. A bound of minus infinity lets through nothing else; a mask would cost ten times as much.
    """
    return torch.maximum(rounded, value.clamp(max=-torch.inf), out=rounded)


def _finalise_int(word: int) -> int:
    word = ((word ^ (word >> 16)) * _MULTIPLIERS[0]) & _LOW_32_BITS
    word = ((word ^ (word >> 13)) * _MULTIPLIERS[1]) & _LOW_32_BITS
    return word ^ (word >> 16)


def _as_signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
