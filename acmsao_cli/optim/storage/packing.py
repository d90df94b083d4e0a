"""Small whole numbers, several to a byte, in the order of memory; the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def packed_length(count: int, bits: int) -> int:
    """Bytes for `count` numbers of 1, 2, 4 or 8 bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 (batch, n), each below 2^bits, into uint8 (batch, packed_length(n, bits))."""
    batch, count = codes.shape
    length, each = packed_length(count, bits), 8 // bits
    if length * each != count:
        codes = functional.pad(codes, (0, length * each - count))
    return (codes.view(batch, length, each) << _shifts(bits, codes.device)).sum(
        2, dtype=torch.uint8
    )


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` numbers as fresh uint8 (batch, count)."""
    codes = packed.unsqueeze(2) >> _shifts(bits, packed.device)
    return codes.bitwise_and_((1 << bits) - 1).flatten(1)[:, :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    # Made on the device: no copy, no wait.
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)


def with_sign(codes: Tensor, negative: Tensor, bits: int) -> Tensor:
    """Set the highest of `bits` bits where `negative`, in place."""
    return codes.bitwise_or_(negative.to(torch.uint8) << (bits - 1))


def split_sign(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Undo `with_sign`, in place; also return +1 or -1 for each, as int8."""
    signs = (codes >> (bits - 1)).view(torch.int8).mul_(-2).add_(1)
    return codes.bitwise_and_((1 << (bits - 1)) - 1), signs
