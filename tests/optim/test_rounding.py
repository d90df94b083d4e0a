"""Stochastic rounding and the noise it draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acmsao_cli.optim import ComposedOptimizer, build_pipeline
from acmsao_cli.optim.noise import Noise, hash_numbers, round_stochastic

LARGEST_NAN = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)


def noise(salt: int = 0, batch: int = 1) -> Noise:
    numbers = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1)
    return Noise(numbers, hash_numbers(5, salt))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32), st.integers(0, 1000))
def test_rounding_gives_one_of_the_two_neighbours(number, salt):
    value = torch.full((1, 1, 64), number)
    down = (value.view(torch.int32) & -0x10000).view(torch.float32).to(torch.bfloat16)
    up = (down.view(torch.int16) + 1).view(torch.bfloat16)
    found = round_stochastic(value, noise(salt))
    assert ((found == down) | (found == up)).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(width=32, allow_nan=False))
def test_what_bf16_can_hold_stays_as_it_is(number):
    value = torch.full((1, 1, 64), number).to(torch.bfloat16)
    assert torch.equal(round_stochastic(value.float(), noise()), value)


def test_nan_and_infinity_survive():
    assert round_stochastic(LARGEST_NAN.view(1, 1, 2), noise()).isnan().all()
    infinite = torch.tensor([[[torch.inf, -torch.inf]]])
    assert torch.equal(round_stochastic(infinite, noise()).float(), infinite)


@pytest.mark.parametrize("number", [1.0 + 2**-9, 3.0e-20 * 1.003, -0.7123])
def test_rounding_is_right_in_the_mean(number):
    value = torch.full((1, 500, 400), number)
    unit = abs(number) * 2**-7
    mean = round_stochastic(value, noise()).double().mean().item()
    assert abs(mean - value[0, 0, 0].item()) < 0.01 * unit


@pytest.mark.parametrize("share", [0.125, 0.5, 0.9])
def test_rounding_has_the_variance_of_one_draw(share):
    """Up with probability f, else down: f (1 - f) units squared, the least an unbiased one has."""
    unit = 2.0**-7
    value = torch.full((1, 500, 400), 1.0 + share * unit)
    error = (round_stochastic(value, noise(3)).double() - value.double()) / unit
    assert abs(error.var().item() - share * (1 - share)) < 0.005


def test_bits_are_uniform_and_streams_independent():
    shape = torch.Size([2, 100, 1000])
    draws = [noise(1, batch=2).stream(index).halves(shape).double() for index in range(3)]
    draws.append(noise(2, batch=2).halves(shape).double())
    rows = torch.cat(draws).flatten(1)
    assert (rows.mean(1) / 2**15).abs().max() < 0.01
    assert (rows.std(1) / 2**16 - 12**-0.5).abs().max() < 0.002
    across = torch.corrcoef(rows) - torch.eye(len(rows))
    assert across.abs().max() < 0.015
    neighbours = torch.corrcoef(torch.stack([rows[0, :-1], rows[0, 1:]]))[0, 1]
    assert neighbours.abs() < 0.015


def test_noise_of_a_stack_is_the_noise_of_its_members():
    shape = torch.Size([3, 5, 7])
    stacked = noise(3, batch=3).stream(2).halves(shape)
    for index in range(3):
        number = torch.full((1, 1, 1), index, dtype=torch.int32)
        alone = Noise(number, hash_numbers(5, 3)).stream(2).halves(torch.Size([1, 5, 7]))
        assert torch.equal(alone[0], stacked[index])


def displacement(rounding: str, storage: str = "fp32") -> float:
    """How far 200 steps of 1e-6 move bf16 weights of 0.02, relative to what they should."""
    parameter = torch.nn.Parameter(torch.full((64, 64), 0.02, dtype=torch.bfloat16))
    pipeline = build_pipeline("adamw", rounding=rounding, storage=storage)
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1e-6)
    start = parameter.detach().double().mean().item()
    for _ in range(200):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return (start - parameter.detach().double().mean().item()) / (200 * 1e-6)


@pytest.mark.parametrize("storage", ["fp32", "bf16", "factored"])
def test_updates_below_bf16_survive_with_stochastic_rounding(storage):
    assert displacement("stochastic", storage) == pytest.approx(1.0, abs=0.1)


def test_updates_below_bf16_die_with_nearest_rounding():
    assert displacement("nearest") == 0.0


def test_fp32_weights_have_nothing_to_round():
    ends = []
    for rounding in ("stochastic", "nearest"):
        parameter = torch.nn.Parameter(torch.ones(3, 3))
        pipeline = build_pipeline("adamw", rounding=rounding)
        optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1e-6)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)


def test_another_seed_rounds_differently():
    ends = []
    for seed in (0, 1):
        parameter = torch.nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16))
        optimizer = ComposedOptimizer(
            [("w", parameter)], build_pipeline("lion"), lr=1e-3, seed=seed
        )
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ends.append(parameter.detach())
    assert not torch.equal(*ends)
