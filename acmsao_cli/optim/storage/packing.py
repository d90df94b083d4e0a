"""Small whole numbers, several to a byte, in the order of memory; the first in the lowest bits."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes to a word


def packed_length(count: int, bits: int) -> int:
    """Bytes for `count` numbers of 1, 2, 4 or 8 bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 (batch, n), each below 2^bits, into uint8 (batch, packed_length(n, bits))."""
    batch, count = codes.shape
    length, each = packed_length(count, bits), 8 // bits
    if length * each != count:
        codes = functional.pad(codes, (0, length * each - count))
    # The numbers of a byte are the bytes of one word. A product moves number i by (8 - bits) i to
    # the right, so that all meet in the highest byte; no two parts of it overlap.
    words = codes.reshape(-1).view(_WORDS[each])
    magic = sum(1 << (8 * (each - 1) - (8 - bits) * index) for index in range(each))
    return ((words * magic) >> (8 * (each - 1))).to(torch.uint8).view(batch, length)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` numbers as fresh uint8 (batch, count)."""
    each = 8 // bits
    words = packed.to(_WORDS[each], copy=True)
    ahead = each // 2
    while ahead:  # copies of the byte, each (8 - bits) further to the left
        words.bitwise_or_(words << ((8 - bits) * ahead))
        ahead //= 2
    lowest = sum(((1 << bits) - 1) << (8 * index) for index in range(each))
    return words.bitwise_and_(lowest).view(torch.uint8)[:, :count]


def look_up(packed: Tensor, values: Tensor, bits: int, count: int) -> Tensor:
    """Return fresh fp32 (batch, count), for each number its entry in `values` (2^bits,).

    Several times faster than computing with the numbers.
    """
    if bits == 4:  # a byte at a time: the bytes of two fp32 are those of one int64
        every = torch.arange(256, device=packed.device)
        pairs = torch.stack([values[every & 15], values[every >> 4]], 1)
        found = pairs.view(torch.int64).view(-1).index_select(0, packed.int().view(-1))
        return found.view(torch.float32).view(len(packed), -1)[:, :count]
    numbers = packed if bits == 8 else unpack(packed, bits, count)
    return values.index_select(0, numbers.int().view(-1)).view(len(packed), -1)[:, :count]


def signed(levels: Tensor) -> Tensor:
    """The values of numbers `with_sign`, given those of numbers without."""
    return torch.cat([levels, -levels])


def with_sign(codes: Tensor, negative: Tensor, bits: int) -> Tensor:
    """Set the highest of `bits` bits where `negative`, in place."""
    return codes.bitwise_or_(negative.to(torch.uint8) << (bits - 1))
