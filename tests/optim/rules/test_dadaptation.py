"""D-adaptation around Adam and its kin."""

import pytest
from optim.rules.trajectory import SHAPES, bowl, deviation, draws, follow, steepness
from reference.dadaptation import dadapt_adam

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline

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


@pytest.mark.parametrize("inner", ["lion", "muon", "prodigy"])
def test_a_rule_without_a_mean_square_is_refused(inner):
    with pytest.raises(OptimizerError, match="dadaptation"):
        build_pipeline("dadaptation", inner=inner)
