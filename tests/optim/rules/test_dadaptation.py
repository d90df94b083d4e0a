"""D-adaptation around Adam and its kin."""

import math

import pytest
import torch
from optim.rules.trajectory import SHAPES, bowl, deviation, draws, follow, steepness
from reference.dadaptation import dadapt_adam
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import Pipeline, build_pipeline
from acmsao_cli.optim.rules.base import rule

START = draws(SHAPES, seed=1)


@pytest.mark.parametrize("options", [{}, {"d0": 1e-4}, {"growth_rate": 1.5}], ids=str)
@pytest.mark.parametrize("lr", [1.0, 0.3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_around_adam_it_equals_the_paper(options, lr, weight_decay):
    expected, d = dadapt_adam(START, bowl, 25, lr=lr, weight_decay=weight_decay, **options)
    pipeline = build_pipeline("dadaptation", **options)
    found, optimizer = follow(pipeline, START, bowl, 25, lr=lr, weight_decay=weight_decay)
    assert deviation(found, expected, START) < 1e-3
    assert float(optimizer.shared[0]["d"]) == pytest.approx(d, rel=1e-3)
    assert d > 10 * options.get("d0", 1e-6)


@pytest.mark.parametrize("inner", ["adopt", {"name": "adamw", "momentum": "ademamix"}], ids=str)
def test_adams_kin_goes_down_a_bowl_inside(inner):
    pipeline = build_pipeline("dadaptation", inner=inner)
    found, _ = follow(pipeline, START, bowl, 200, lr=1.0)
    assert steepness(found) < 0.5 * steepness(START)


FITTING = [
    "adamw",
    {"name": "adamw", "correction": "update"},
    {"name": "adamw", "amsgrad": True},
    {"name": "adamw", "ratio": "floored"},
    {"name": "adamw", "momentum": "nesterov"},
    {"name": "adamw", "momentum": "ademamix"},
    "adopt",
    {"name": "adopt", "skip_first": False},
    {"name": "adopt", "ratio": "atan2", "clip": math.inf},
]


def regression(pipeline: Pipeline, num_steps: int = 400) -> float:
    """d after a linear regression, in which all weights are 4 or -4 away from where they belong."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 20, generator=generator)
    goal = 4 * torch.randn(20, 6, generator=generator).sign()

    def gradient(weights: list[Tensor], _: int) -> list[Tensor]:
        return [inputs.T @ (inputs @ (weights[0] - goal)) / 600]

    _, optimizer = follow(pipeline, [torch.zeros(20, 6)], gradient, num_steps, lr=1.0)
    return float(optimizer.shared[0]["d"])


def test_around_whatever_it_accepts_it_finds_the_distance():
    default = regression(build_pipeline("dadaptation"))
    assert 4 / 3 < default < 12
    for inner in FITTING:
        found = regression(build_pipeline("dadaptation", inner=inner))
        assert default / 3 < found < 3 * default, inner


@pytest.mark.parametrize("name", rule.parts)
def test_every_other_rule_is_refused_with_a_reason(name):
    if name not in {"adamw", "adopt"}:
        with pytest.raises(OptimizerError, match="dadaptation") as caught:
            build_pipeline("dadaptation", inner=name)
        assert caught.value.hint


@pytest.mark.parametrize("momentum", ["accumulator", "heavy_ball"])
@pytest.mark.parametrize("inner", ["adamw", "adopt"])
def test_sums_are_refused(inner, momentum):
    with pytest.raises(OptimizerError, match="is a sum"):
        build_pipeline("dadaptation", inner={"name": inner, "momentum": momentum})


def test_a_ratio_that_does_not_pass_d_on_is_refused():
    with pytest.raises(OptimizerError, match="atan2"):
        build_pipeline("dadaptation", inner={"name": "adamw", "ratio": "atan2"})
