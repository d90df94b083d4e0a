"""Adafactor."""

import pytest
import torch
from optim.trajectory import ours, stream
from reference.adafactor import adafactor as paper

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, accounting, build_pipeline

shapes = pytest.mark.parametrize("shape", [(5, 7), (9,), ()], ids=str)


@shapes
@pytest.mark.parametrize("options", [{}, {"clip": 0.3}, {"beta1": 0.9}], ids=str)
def test_adafactor_equals_the_paper(shape, options):
    expected = paper(*stream(shape), lr=0.01, **options)
    found = ours(build_pipeline("adafactor", **options), shape, lr=0.01)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@shapes
def test_the_relative_step_is_the_papers(shape):
    expected = paper(*stream(shape), lr=1.0, relative=True)
    pipeline = build_pipeline("adafactor", relative_step=True, scale_parameter=True)
    torch.testing.assert_close(ours(pipeline, shape, lr=1.0), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_decay_goes_with_the_relative_step(scaled):
    parameter = torch.nn.Parameter(torch.full((5, 7), 2.0))
    pipeline = build_pipeline("adafactor", relative_step=True, scale_parameter=scaled)
    optimizer = ComposedOptimizer([("w", parameter)], pipeline, lr=1.0, weight_decay=0.1)
    parameter.grad = torch.zeros(5, 7)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((5, 7), 2.0 * (1 - 0.01 * 0.1)))


def test_a_convolution_is_a_matrix_of_its_filters():
    found = ours(build_pipeline("adafactor"), (4, 3, 3, 3), lr=0.01)
    weights, grads = stream((4, 3, 3, 3))
    expected = paper(weights.flatten(1), [grad.flatten(1) for grad in grads], lr=0.01)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-5, atol=2e-6)


def test_a_matrix_costs_four_bytes_for_each_row_and_column():
    assert accounting.state_bytes(build_pipeline("adafactor"), [(640, 320)]) == 4 * (640 + 320)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e3])
def test_the_scale_of_gradients_does_not_matter(scale):
    ends = []
    for size in (1.0, scale):
        weights, grads = stream((5, 7))
        parameter = torch.nn.Parameter(weights)
        optimizer = ComposedOptimizer([("w", parameter)], build_pipeline("adafactor"), lr=0.01)
        for grad in grads:
            parameter.grad = grad * size
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"clip": 0.0}, {"beta1": 1.0}, {"decay_rate": 0.0}, {"eps1": 0.0}, {"eps2": 0.0}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(OptimizerError, match="must be"):
        build_pipeline("adafactor", **options)
