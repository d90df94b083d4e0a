"""SGD, and the steps of plain descent before another rule."""

import pytest
import torch
from optim.trajectory import SHAPES, ours, stream
from reference import adamw as adamw_paper
from reference import sgd as paper

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@shapes
@pytest.mark.parametrize("options", [{}, {"dampening": 0.5}, {"nesterov": True}], ids=str)
def test_sgd_equals_the_paper(shape, options):
    expected = paper.sgd(*stream(shape), lr=0.01, **options)
    found = ours(build_pipeline("sgd", momentum={"name": "heavy_ball", **options}), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
def test_an_average_is_the_sum_scaled_and_corrected(shape):
    weights, grads = stream(shape)
    w, m = weights.double(), 0.0
    for t, grad in enumerate(grads, start=1):
        m = 0.9 * m + 0.1 * grad.double()
        w = w - 0.01 * m / (1 - 0.9**t)
    found = ours(build_pipeline("sgd", momentum="ema"), shape, lr=0.01)
    torch.testing.assert_close(found, w, **CLOSE)


@shapes
def test_without_momentum_nothing_is_remembered(shape):
    weights, grads = stream(shape)
    pipeline = build_pipeline("sgd", beta=0.0, momentum="ema")
    assert pipeline.rule.slots == ()
    expected = weights.double() - 0.01 * torch.stack([g.double() for g in grads]).sum(0)
    torch.testing.assert_close(ours(pipeline, shape, lr=0.01), expected, **CLOSE)


@shapes
@pytest.mark.parametrize("steps", [0, 5])
def test_a_warm_start_descends_while_the_inner_state_fills(shape, steps):
    expected = paper.warm_adamw(*stream(shape), lr=0.01, steps=steps, scale=0.5)
    found = ours(build_pipeline("warm_start", steps=steps, scale=0.5), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_warm_start_of_no_steps_is_the_inner_rule():
    found = ours(build_pipeline("warm_start", inner="adopt", steps=0), (5, 7), lr=0.01)
    assert torch.equal(found, ours(build_pipeline("adopt"), (5, 7), lr=0.01))
    expected = adamw_paper.adamw(*stream((5, 7)), lr=0.01)
    found = ours(build_pipeline("warm_start", steps=0), (5, 7), lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"beta": 1.0}, "beta must be in"),
        ("warm_start", {"steps": -1}, "-1 steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline(name, **options)
