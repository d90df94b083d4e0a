"""What holds for every codec: shapes, batches, blocks of rows, chance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim.storage.kept import CPU, every

from acmsao_cli.optim.execution import spans_of
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.slots import Role
from acmsao_cli.optim.storage.blockwise import Blockwise
from acmsao_cli.optim.storage.codec import Pieces
from acmsao_cli.optim.storage.dense import Half
from acmsao_cli.optim.storage.rank1 import folded_shape

SHAPES = [(1, 1, 1), (2, 1, 7), (1, 3, 5), (3, 17, 31), (1, 1, 1000), (2, 33, 16)]
EMPTY = [(1, 0, 4), (2, 3, 0), (1, 1, 0)]
few = settings(max_examples=20, deadline=None, derandomize=True)


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_writing_what_was_read_changes_nothing(kept, shape):
    once = kept.read(kept.written(kept.value(shape)), shape)
    for salt in (3, 4):
        twice = kept.read(kept.written(once, salt), shape)
        torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-30)


@every
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_fresh_state_and_zero_read_as_zero(kept, shape):
    if not ("2bit" in kept.name and kept.codec.measured):  # they have no zero but the unit's
        assert not kept.read(kept.codec.allocate(shape, CPU), shape).any()
        assert not kept.read(kept.written(torch.zeros(shape)), shape).any()


@every
@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_values_keep_their_shape_and_sign(kept, shape):
    value = kept.value(shape)
    found = kept.read(kept.written(value), shape)
    assert found.shape == value.shape
    assert found.dtype == torch.float32
    assert (found * value >= 0).all()
    if kept.role is Role.POSITIVE:
        assert (found > 0).all()


@every
@given(batch=st.integers(2, 4), rows=st.integers(1, 6), cols=st.integers(1, 40))
@few
def test_parameters_of_a_batch_do_not_meet(kept, batch, rows, cols):
    shape = (batch, rows, cols)
    value, unit = kept.value(shape), kept.unit(shape)
    together = kept.written(value)
    for index in range(batch):
        one = kept.codec.allocate((1, rows, cols), CPU)
        numbers = torch.full((1, 1, 1), index, dtype=torch.int32)
        unit_of_one = None if unit is None else unit[index : index + 1]
        kept.codec.write(one, value[index : index + 1], Noise(numbers, 11), unit_of_one)
        for name, piece in one.items():
            torch.testing.assert_close(piece[0], together[name][index])


@every
@pytest.mark.parametrize("shape", [(1, 40, 96), (2, 33, 16), (1, 1, 70_000), (1, 600, 7)], ids=str)
def test_written_in_blocks_equals_written_whole(kept, shape):
    if kept.codec.whole:
        return
    value, unit = kept.value(shape), kept.unit(shape)
    whole = kept.written(value)
    pieces = kept.codec.allocate(shape, CPU)
    noise = Noise(torch.arange(shape[0], dtype=torch.int32).view(-1, 1, 1), 11)
    blocks: list[Pieces] = []
    rows_of_a_vector = folded_shape(1, shape[2])[1] if shape[1] == 1 else 1
    spans = spans_of(value.shape, 512, aligned=math.lcm(256, rows_of_a_vector))
    assert len(spans) > 1
    for span in spans:
        block = span.cut_pieces(pieces, kept.codec.packed)
        part = None if unit is None else span.cut(unit)
        kept.codec.write(block, span.cut(value), noise.starting_at(span.offset), part)
        blocks.append(block)
    kept.codec.join(pieces, blocks)
    for name, piece in whole.items():
        torch.testing.assert_close(pieces[name], piece, rtol=1e-5, atol=0)


@every
def test_joined_blocks_keep_what_is_tiny_and_what_is_zero(kept):
    if kept.role is not Role.POSITIVE or kept.codec.whole:
        return
    value = torch.full((1, 64, 16), 1e-37)
    value[:, :32] = 1e10
    value[:, 5] = 0
    pieces = kept.codec.allocate((1, 64, 16), CPU)
    blocks = []
    for span in spans_of(value.shape, 256, aligned=256):
        blocks.append(span.cut_pieces(pieces, kept.codec.packed))
        noise = Noise(torch.zeros((1, 1, 1), dtype=torch.int32), 5).starting_at(span.offset)
        kept.codec.write(blocks[-1], span.cut(value), noise)
    kept.codec.join(pieces, blocks)
    found = kept.codec.read(pieces)
    assert torch.equal(found > 0, value > 0)


@every
def test_stochastic_rounding_is_unbiased(kept):
    if not isinstance(kept.codec, Half | Blockwise):
        return
    value = kept.value((1, 4, 32))
    draws = 2000
    mean = sum(kept.read(kept.written(value, salt * 77), (1, 4, 32)) for salt in range(draws))
    error = (mean / draws - value).abs() / value.abs().max()
    coarse = isinstance(kept.codec, Blockwise) and kept.codec.bits == 4  # its steps are .2
    assert error.max() < (1e-2 if coarse else 5e-4)
