"""ADOPT."""

import math

import pytest
import torch
from optim.trajectory import SHAPES, ours, stream
from reference import adopt as paper

from acmsao_cli.optim import ComposedOptimizer, build_pipeline

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@shapes
@pytest.mark.parametrize("betas", [(0.9, 0.9999), (0.0, 0.99)], ids=str)
def test_adopt_equals_the_paper(shape, betas):
    expected = paper.adopt(*stream(shape), lr=0.01, betas=betas)
    found = ours(build_pipeline("adopt", betas=betas), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
def test_eps_may_be_added_and_the_clip_left_out(shape):
    options = {"eps": 0.3, "clip": math.inf, "ratio": "divide"}
    expected = paper.adopt(*stream(shape), lr=0.01, eps=0.3, denominator="add", clip=False)
    found = ours(build_pipeline("adopt", **options), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
def test_atan2_bounds_the_gradients_before_they_are_averaged(shape):
    expected = paper.adopt_atan2(*stream(shape), lr=0.01, betas=(0.9, 0.99))
    options = {"betas": (0.9, 0.99), "clip": math.inf, "skip_first": False}
    found = ours(build_pipeline("adopt", ratio="atan2", **options), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_first_gradient_only_starts_the_second_moment():
    weights, _ = stream((5, 7))
    assert torch.equal(ours(build_pipeline("adopt"), (5, 7), 1, lr=0.1), weights.double())


def test_entries_that_were_zero_at_first_are_clipped_when_they_come_alive():
    """The floor alone would let a step of a million learning rates through."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = ComposedOptimizer([("w", parameter)], build_pipeline("adopt"), lr=1.0)
    for grad in (torch.zeros(4), torch.ones(4)):
        parameter.grad = grad
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.1))


def test_the_momentum_counts_the_gradients_it_was_given():
    momentum = {"name": "heavy_ball", "dampening": 0.5}
    weights, grads = stream((5, 7))
    normal = (grads[1] / grads[0].abs().clamp(min=1e-6)).clamp(-1, 1)
    found = ours(build_pipeline("adopt", momentum=momentum), (5, 7), 2, lr=0.1)
    torch.testing.assert_close(found, (weights - 0.1 * normal).double(), **CLOSE)


def test_a_first_step_that_is_not_skipped_is_the_gradients_sign():
    weights, grads = stream((5, 7))
    options = {"skip_first": False, "betas": (0.0, 0.99)}
    for clip in ({"name": "power"}, {"name": "power", "exponent": -0.5}):
        found = ours(build_pipeline("adopt", clip=clip, **options), (5, 7), 1, lr=0.1)
        torch.testing.assert_close(found, (weights - 0.1 * grads[0].sign()).double(), **CLOSE)
