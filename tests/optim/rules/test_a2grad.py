"""A2Grad: the recurrences of the paper, at a learning rate of 1."""

import pytest
import torch
from optim.rules.trajectory import SHAPES, bowl, deviation, draws, follow, noise, steepness
from reference.a2grad import a2grad, a2grad_of_torch_optimizer

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline

# Published settings for small, medium and large batches.
TIERS = [
    {"variant": "uni", "beta": 10.0, "lips": 10.0},
    {"variant": "inc", "beta": 5.0, "lips": 5.0},
    {"variant": "exp", "beta": 5.0, "lips": 1.0, "rho": 0.9},
]
tiers = pytest.mark.parametrize("options", TIERS, ids=lambda options: options["variant"])


@tiers
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_paper(shape, options, scalar):
    (weights,) = start = draws([shape], seed=1)
    grads = [noise(start, step)[0] for step in range(20)]
    expected = a2grad(weights, grads, scalar=scalar, **options)
    found, _ = follow(build_pipeline("a2grad", scalar=scalar, **options), start, noise, 20, lr=1.0)
    assert deviation(found, [expected], start) < 2e-5


@tiers
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_one_number_for_each_parameter_it_equals_torch_optimizer(shape, options):
    (weights,) = start = draws([shape], seed=1)
    grads = [noise(start, step)[0] for step in range(20)]
    expected = a2grad_of_torch_optimizer(weights, grads, **options)
    found, _ = follow(build_pipeline("a2grad", scalar=True, **options), start, noise, 20, lr=1.0)
    assert deviation(found, [expected], start) < 2e-5


@tiers
def test_it_goes_down_a_bowl(options):
    start = draws(SHAPES, seed=1)
    found, _ = follow(build_pipeline("a2grad", **options), start, bowl, 200, lr=1.0)
    assert steepness(found) < 0.2 * steepness(start)


def test_half_the_learning_rate_is_half_the_first_change():
    start = draws(SHAPES, seed=1)
    whole, _ = follow(build_pipeline("a2grad"), start, noise, 1, lr=1.0)
    half, _ = follow(build_pipeline("a2grad"), start, noise, 1, lr=0.5)
    for before, one, other in zip(start, whole, half, strict=True):
        torch.testing.assert_close(2 * (other - before), one - before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"variant": "log"}, "variant"), ({"lips": 0.0}, "lips"), ({"rho": 1.5}, "rho")],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline("a2grad", **options)
