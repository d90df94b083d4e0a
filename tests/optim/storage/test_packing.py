"""Small whole numbers in bytes, and values in their place."""

from __future__ import annotations

import pytest
import torch

from acmsao_cli.optim.storage.packing import look_up, pack, packed_length, unpack


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64, 1001])
def test_a_look_up_is_that_of_the_numbers_that_were_packed(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 1 << bits, (3, count), generator=generator, dtype=torch.uint8)
    values = torch.randn(1 << bits, generator=generator)
    packed = pack(numbers, bits)
    assert packed.shape == (3, packed_length(count, bits))
    assert torch.equal(unpack(packed, bits, count), numbers)
    assert torch.equal(look_up(packed, values, bits, count), values[numbers.long()])


def test_a_part_of_a_larger_piece_is_looked_up() -> None:
    packed = torch.arange(64, dtype=torch.uint8).view(2, 32)
    values = torch.arange(16.0)
    part = look_up(packed[:, 4:9], values, 4, 9)
    assert torch.equal(part, look_up(packed, values, 4, 64)[:, 8:17])
