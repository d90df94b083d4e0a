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
