"""Muon: equal singular values, whatever the momentum's."""

import pytest
import torch
from optim.rules.trajectory import deviation, draws, follow, noise
from reference.muon import muon as muon_paper

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.rules.muon import equalise

SHAPES = [(5, 7), (9, 4), (4, 3, 3, 3), (6, 6)]


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_publication(shape, scale):
    (weights,) = start = draws([shape], seed=1)
    grads = [noise(start, step)[0] for step in range(12)]
    expected = muon_paper(weights, grads, lr=0.02, weight_decay=0.1, scale=scale)
    found, _ = follow(
        build_pipeline("muon", scale=scale), start, noise, 12, lr=0.02, weight_decay=0.1
    )
    assert deviation(found, [expected], start) < 2e-4


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 3, 9), (2, 9, 3)], ids=str)
def test_singular_values_come_near_one(shape):
    (x,) = draws([shape], seed=2)
    values = torch.linalg.svdvals(equalise(x / x.norm(dim=(1, 2), keepdim=True), 5))
    assert ((values > 0.3) & (values < 1.3)).all()


def test_with_the_scale_of_adamw_the_update_is_as_large_as_adamws():
    (start,) = draws([(64, 128)], seed=3)
    for factor in (1e-6, 1e3):  # and does not depend on the gradient's size
        found, _ = follow(
            build_pipeline("muon", scale="match_rms_adamw"),
            [start],
            lambda weights, step, factor=factor: [factor * g for g in noise(weights, step)],
            1,
            lr=1.0,
        )
        assert 0.15 < (found[0] - start).square().mean().sqrt() < 0.25


def test_of_a_vector_only_the_length_is_adjusted():
    start, (grad,) = draws([(50,)], seed=4), noise([torch.zeros(50)], 0)
    found, _ = follow(build_pipeline("muon"), start, noise, 1, lr=1.0)
    change = start[0] - found[0]
    assert torch.nn.functional.cosine_similarity(change, grad.double(), dim=0) > 1 - 1e-6
    assert 0.6 < change.norm() < 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "adam"}, "scale of muon"),
        ({"precision": "fp16"}, "precision of muon"),
        ({"iterations": 0}, "iterations must be positive"),
        ({"beta": 1.0}, "beta must be in"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline("muon", **options)
