"""What is particular to a storage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim.storage.kept import CPU, noise

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, accounting, build_pipeline
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.blockwise import BLOCK, Blockwise
from acmsao_cli.optim.storage.codec import Cell, Full
from acmsao_cli.optim.storage.measured import Measured
from acmsao_cli.optim.storage.offloaded import Offloaded
from acmsao_cli.optim.storage.policy import build_storage, named_storage
from acmsao_cli.optim.storage.rank1 import folded_shape
from acmsao_cli.optim.storage.square import near_square

MOMENTUM = Slot("momentum", Role.SIGNED, unit="mean_square")
low_bits = pytest.mark.parametrize("bits", [2, 4, 8])


def measured(bits: int) -> Measured:
    codec = named_storage(f"factored_{bits}bit").codec(MOMENTUM)
    assert isinstance(codec, Measured)
    return codec


def counted(codec: Measured, value: torch.Tensor, unit: torch.Tensor, salt: int = 1):
    pieces = codec.allocate(tuple(value.shape), CPU)
    codec.write(pieces, value, noise(value.shape[0], salt), unit)
    return codec.read(pieces, unit)


@low_bits
def test_a_measured_momentum_never_exceeds_its_top(bits):
    codec = measured(bits)
    value = torch.tensor([0.0, 1e-30, 1.0, -1e30, 3.0, -5.0]).expand(1, 4, 6)
    unit = torch.tensor([0.0, 1e-20, 1.0, 1e30]).view(1, 4, 1).expand(1, 4, 6)
    found = counted(codec, value, unit)
    assert found.isfinite().all()
    assert (found.abs() <= codec.top * unit * (1 + 1e-6)).all()
    assert codec.top <= 1
    assert not found[:, 0].any()


@low_bits
def test_a_measured_momentum_takes_its_bits_and_nothing_else(bits):
    pieces = measured(bits).allocate((1, 640, 320), CPU)
    assert sum(piece.nbytes for piece in pieces.values()) == 640 * 320 * bits // 8


@pytest.mark.parametrize(("bits", "error"), [(2, 0.13), (4, 0.06), (8, 0.01)])
def test_a_measured_momentum_of_usual_size_is_near(bits, error):
    """Averages of independent gradients have a deviation of .23 roots of their mean square."""
    value = torch.randn(1, 200, 200, generator=torch.Generator().manual_seed(0)) * 0.23
    found = counted(measured(bits), value, torch.ones_like(value))
    assert (found - value).square().mean().sqrt() < error


def test_a_momentum_measured_in_eight_bits_decays():
    """Rounded to the nearest, nine tenths of a small level are that level again."""
    value, unit = torch.full((1, 50, 50), 0.2), torch.ones(1, 50, 50)
    for step in range(100):
        value = counted(measured(8), value * 0.9, unit, salt=step * 77)
    assert value.mean() < 0.005


@pytest.mark.parametrize("name", ["factored_2bit", "factored_4bit", "factored_8bit"])
def test_a_slot_without_unit_is_kept_all_the_same(name):
    codec = named_storage(name).codec(Slot("slow_momentum", Role.SIGNED))
    assert not codec.measured
    value = torch.randn(1, 30, 40, generator=torch.Generator().manual_seed(0))
    pieces = codec.allocate((1, 30, 40), CPU)
    codec.write(pieces, value, noise(1))
    assert torch.cosine_similarity(codec.read(pieces).flatten(), value.flatten(), 0) > 0.79


def test_a_small_second_moment_beside_a_large_one_is_kept():
    """With even steps it would become zero, and the update infinite."""
    value = 10.0 ** torch.linspace(-9, 0, BLOCK).view(1, 1, BLOCK)
    codec = named_storage("int8").codec(Slot("mean_square", Role.POSITIVE))
    pieces = codec.allocate((1, 1, BLOCK), CPU)
    codec.write(pieces, value, noise(1))
    ratio = codec.read(pieces) / value
    assert ((ratio > 0.05) & (ratio < 20)).all()
    assert ((ratio > 0.8) & (ratio < 1.25))[0, 0, BLOCK // 2 :].all()


@given(largest=st.integers(0, BLOCK - 1), bits=st.sampled_from([4, 8]), signed=st.booleans())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_largest_of_a_block_is_exact(largest, bits, signed):
    value = torch.rand(1, 1, BLOCK)
    value[0, 0, largest] = 3.14159
    codec = Blockwise(bits, power=4, signed=signed)
    pieces = codec.allocate((1, 1, BLOCK), CPU)
    codec.write(pieces, value, noise(1))
    assert codec.read(pieces)[0, 0, largest] == value[0, 0, largest]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 1)), (7, (1, 7)), (12, (3, 4)), (64, (8, 8)), (0, (1, 0))]
)
def test_the_squarest_matrix(count, expected):
    assert near_square(count) == expected


@pytest.mark.parametrize("shape", [(16, 1280), (10240, 16)])
def test_the_square_is_smaller_for_thin_matrices(shape):
    square, natural = (
        accounting.state_bytes(build_pipeline("adamw", storage=name), [shape])
        for name in ("factored_square", "factored")
    )
    assert square < 0.5 * natural


@pytest.mark.parametrize("length", [768, 66_000, 1_000_000, 1 << 26])
def test_a_vector_of_any_length_is_factored(length):
    pipeline = build_pipeline("adamw", storage="factored")
    found = accounting.state_bytes(pipeline, [(length,)])
    assert found <= length / 8 + 4 * 4.2 * length**0.5  # signs; four sums of nearly the root


@pytest.mark.parametrize("length", [7, 65_537, 2 * 65_537])
def test_a_vector_that_cannot_be_folded_is_kept_with_its_signs(length):
    """Of prime length, or folded into too long rows for blocks to hold them."""
    assert folded_shape(1, length)[0] == 1
    pipeline = build_pipeline("adamw", storage="factored")
    assert accounting.state_bytes(pipeline, [(length,)]) <= 8 * length + -(-length // 8) + 8


def test_the_square_records_the_shape_it_came_from():
    pieces = named_storage("factored_square").positive.allocate((2, 6, 8), CPU)
    assert pieces["shape"].shape == (2, 6, 8, 0)
    assert pieces["row"].shape == (2, 6, 1)
    assert pieces["col"].shape == (2, 1, 8)


def test_offloaded_names_are_read_and_told():
    slots = (MOMENTUM, Slot("mean_square", Role.POSITIVE))
    names = {"default": "factored", "momentum": "offloaded(bf16)"}
    storage = build_storage(names, slots)
    assert dict(storage.names()) == names
    assert storage.codec(MOMENTUM).offloaded
    assert not storage.codec(slots[1]).offloaded
    assert dict(build_storage("offloaded(int8)", slots).names()) == {"default": "offloaded(int8)"}
    for wrong in ("offloaded(nothing)", "offloaded(offloaded(fp32))", "offloaded"):
        with pytest.raises(OptimizerError, match="unknown storage"):
            named_storage(wrong)


@pytest.mark.parametrize("name", ["fp32", "int8", "factored", "factored_4bit"])
def test_offloaded_state_gives_the_same_bits(name):
    found = []
    for kept in (name, f"offloaded({name})"):
        weight = torch.nn.Parameter(torch.ones(9, 11))
        optimizer = ComposedOptimizer(
            [("w", weight)], build_pipeline("adamw", storage=kept), lr=0.1
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            weight.grad = torch.randn(9, 11, generator=generator)
            optimizer.step()
        found.append({"weight": weight.detach(), **optimizer.state_tensors()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_cell_waits_once_for_all_its_pieces_to_come_home(monkeypatch):
    """What happens on CUDA, told by stand-ins."""
    told = []

    class Piece:
        nbytes = 4

        def copy_(self, staged, non_blocking):
            told.append(("copied", non_blocking))

    class Stream:
        def synchronize(self):
            told.append("waited")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    names, staged = ("row", "col", "sign"), SimpleNamespace(device=torch.device("cuda", 0))
    Offloaded(Full()).unstage({name: Piece() for name in names}, dict.fromkeys(names, staged))
    assert told == [("copied", True)] * 3 + ["waited"]


class Elsewhere(Offloaded):
    """Staging copies, as it does between host and device."""

    def stage(self, pieces, device):
        return {name: piece.clone() for name, piece in pieces.items()}


def test_a_cell_brings_home_what_it_wrote():
    codec = Elsewhere(Full())
    pieces = codec.allocate((1, 2, 3), CPU)
    cell = Cell(codec, pieces, noise(1))
    cell.read().add_(1)
    assert not pieces["value"].any()
    cell.write(cell.read())
    assert (pieces["value"] == 1).all()
