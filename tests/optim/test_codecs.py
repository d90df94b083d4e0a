"""Properties of every codec, for the roles it serves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.codec import Full
from acmsao_cli.optim.storage.offloaded import Offloaded
from acmsao_cli.optim.storage.policy import named_storage, storage
from acmsao_cli.optim.storage.rank1 import pack_signs, unpack_signs

CPU = torch.device("cpu")
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny

every_storage = pytest.mark.parametrize("name", [*storage.parts, "offloaded(factored_4bit)"])
few = settings(max_examples=30, deadline=None, derandomize=True)


@st.composite
def values(draw: st.DrawFn, signed: bool) -> torch.Tensor:
    """(batch, rows, cols) of magnitudes across the whole normal range, some of them zero."""
    shape = [draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 11))]
    numel = math.prod(shape)
    exponents = draw(st.lists(st.integers(-37, 10), min_size=numel, max_size=numel))
    kinds = draw(st.lists(st.integers(-1 if signed else 0, 3), min_size=numel, max_size=numel))
    pairs = zip(exponents, kinds, strict=True)
    numbers = [math.copysign(1.5 * 10.0**e, kind) if kind else 0.0 for e, kind in pairs]
    return torch.tensor(numbers).view(shape)


def noise(batch: int) -> Noise:
    return Noise(torch.arange(batch, dtype=torch.int32).view(-1, 1, 1), salt=11)


def through(name: str, role: Role, value: torch.Tensor, times: int = 1) -> torch.Tensor:
    codec = named_storage(name).codec(Slot("slot", role))
    pieces = codec.allocate(tuple(value.shape), CPU)
    for _ in range(times):
        codec.write(pieces, value, noise(value.shape[0]))
        value = codec.read(pieces).clone()
    return value


@every_storage
@pytest.mark.parametrize("role", Role)
def test_fresh_state_reads_as_zero_and_zero_stays_zero(name, role):
    codec = named_storage(name).codec(Slot("slot", role))
    pieces = codec.allocate((2, 3, 5), CPU)
    assert not codec.read(pieces).any()
    codec.write(pieces, torch.zeros(2, 3, 5), noise(2))
    assert not codec.read(pieces).any()


@every_storage
@given(value=values(signed=True))
@few
def test_signs_survive(name, value):
    found = through(name, Role.SIGNED, value)
    assert ((found * value.sign() >= 0) | (value == 0)).all()


@every_storage
@given(value=values(signed=False))
@few
def test_positive_stays_positive(name, value):
    found = through(name, Role.POSITIVE, value)
    assert (found[value >= SMALLEST_NORMAL] > 0).all()
    assert (found >= 0).all()


@every_storage
@pytest.mark.parametrize("role", [Role.SIGNED, Role.POSITIVE])
@given(value=values(signed=False))
@few
def test_writing_what_was_read_changes_nothing(name, role, value):
    once, twice = through(name, role, value), through(name, role, value, times=2)
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-36)


@every_storage
@given(value=values(signed=True))
@few
def test_writing_leaves_the_value_alone(name, value):
    before = value.clone()
    through(name, Role.SIGNED, value)
    assert torch.equal(before, value)


@every_storage
@pytest.mark.parametrize("role", [Role.EXACT, Role.SCALAR])
def test_what_must_be_exact_is_kept_in_fp32_everywhere(name, role):
    codec = named_storage(name).codec(Slot("slot", role))
    assert codec == Full() or (role is Role.EXACT and codec == Offloaded(Full()))


def test_a_vector_is_folded_into_a_matrix_nearly_as_high_as_wide():
    """Exact where the folded vector is of rank one; one of prime length cannot be folded."""
    generator = torch.Generator().manual_seed(0)
    row, col = torch.rand(2, 6, 1, generator=generator), torch.rand(2, 1, 9, generator=generator)
    vector = (row * col).reshape(2, 1, 54)
    torch.testing.assert_close(through("factored", Role.POSITIVE, vector), vector)
    prime = torch.rand(2, 1, 53, generator=generator)
    torch.testing.assert_close(through("factored", Role.POSITIVE, prime), prime)


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1.0, 1e12])
def test_factored_state_is_exact_for_rank_one_at_any_scale(scale):
    generator = torch.Generator().manual_seed(0)
    row, col = torch.rand(2, 6, 1, generator=generator), torch.rand(2, 1, 9, generator=generator)
    value = row * col * scale
    torch.testing.assert_close(through("factored", Role.POSITIVE, value), value, rtol=1e-5, atol=0)


def test_factored_state_keeps_row_and_column_sums():
    value = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(0))
    found = through("factored", Role.POSITIVE, value)
    for dim in (1, 2):
        torch.testing.assert_close(found.sum(dim), value.sum(dim))


def test_factored_bytes_are_a_bit_for_each_sign_and_four_for_each_row_and_column():
    pieces = storage.get("factored")().signed.allocate((1, 640, 320), CPU)
    assert sum(piece.nbytes for piece in pieces.values()) == 640 * 320 // 8 + 4 * (640 + 320)


@given(value=values(signed=True))
@few
def test_signs_pack_eight_to_a_byte(value):
    packed = pack_signs(value)
    assert packed.shape == (value.shape[0], math.ceil(value[0].numel() / 8))
    assert torch.equal(unpack_signs(packed, value.shape) > 0, value >= 0)


@every_storage
def test_a_slow_average_still_decays(name):
    """A second moment after gradients became small; with nearest bf16 rounding it would stick."""
    codec = named_storage(name).codec(Slot("slot", Role.POSITIVE))
    pieces = codec.allocate((1, 16, 16), CPU)
    codec.write(pieces, torch.ones(1, 16, 16), noise(1))
    for step in range(500):
        value = codec.read(pieces).mul(0.999)
        codec.write(pieces, value, Noise(torch.zeros(1, 1, 1, dtype=torch.int32), salt=step * 77))
    assert codec.read(pieces).mean().item() == pytest.approx(0.999**500, rel=0.02)
