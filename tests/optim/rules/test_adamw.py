"""AdamW's options, and the momenta it takes."""

import pytest
import torch
from optim.trajectory import SHAPES, ours, stream
from reference import adamw as paper
from reference.simplified_ademamix import simplified_ademamix

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import build_pipeline

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@shapes
def test_amsgrad_equals_the_paper(shape):
    expected = paper.amsgrad(*stream(shape), lr=0.01, betas=(0.9, 0.5))
    found = ours(build_pipeline("adamw", betas=(0.9, 0.5), amsgrad=True), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
@pytest.mark.parametrize("ratio", ["divide", "atan2"])
def test_a_late_correction_divides_the_update(shape, ratio):
    expected = paper.adamw(*stream(shape), lr=0.01, ratio=ratio, late=True)
    found = ours(build_pipeline("adamw", ratio=ratio, correction="update"), shape, lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
def test_without_correction_the_first_step_is_as_long_as_the_averages_are_short(shape):
    (weights, grads), betas = stream(shape), (0.9, 0.99)
    pipeline = build_pipeline("adamw", betas=betas, correction="none")
    g = grads[0].double()
    expected = weights.double() - 0.01 * 0.1 * g / ((0.01 * g**2).sqrt() + 1e-8)
    torch.testing.assert_close(ours(pipeline, shape, 1, lr=0.01), expected, **CLOSE)


@shapes
def test_epsilon_may_follow_milestones(shape):
    course = {"name": "milestones", "steps": [1000], "values": [0.3, 5.0]}
    found = ours(build_pipeline("adamw", eps=course), shape, lr=0.01)
    expected = paper.adamw(*stream(shape), lr=0.01, eps=0.3)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
def test_epsilon_may_be_any_function_of_the_step(shape):
    weights, grads = stream(shape)
    found = ours(build_pipeline("adamw", eps=lambda step: 0.1 * step), shape, lr=0.01)
    w, m, v = weights.double(), 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.01 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 0.1 * t)
    torch.testing.assert_close(found, w, **CLOSE)


@shapes
def test_no_first_moment_needs_no_slot(shape):
    pipeline = build_pipeline("adamw", betas=(0.0, 0.999))
    assert [slot.name for slot in pipeline.rule.slots] == ["mean_square"]
    expected = paper.adamw(*stream(shape), lr=0.01, betas=(0.0, 0.999))
    torch.testing.assert_close(ours(pipeline, shape, lr=0.01), expected, **CLOSE)


@shapes
def test_ademamix_without_its_fast_average_keeps_the_slow_one_alone(shape):
    options = {"slow_beta": 0.99, "alpha": 3.0, "warmup": 10}
    betas = (0.0, 0.999)
    pipeline = build_pipeline("adamw", betas=betas, momentum={"name": "ademamix", **options})
    assert [slot.name for slot in pipeline.rule.slots] == ["slow_momentum", "mean_square"]
    weights, grads = stream(shape)
    w, slow, v = weights.double(), 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        g, share = grad.double(), min(t / 10, 1.0)
        b3 = 0.99 ** (1 / share)  # a half-life that grows from 0
        slow, v = b3 * slow + (1 - b3) * g, 0.999 * v + 0.001 * g**2
        w = w - 0.01 * (g + 3.0 * share * slow) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(ours(pipeline, shape, lr=0.01), w, **CLOSE)


@shapes
@pytest.mark.parametrize("late", [False, True])
def test_ademamix_warms_up_as_in_the_paper(shape, late):
    options = {"slow_beta": 0.99, "alpha": 3.0, "warmup": 10}
    expected = paper.ademamix(*stream(shape), lr=0.01, late=late, **options)
    correction = "update" if late else "momentum"
    momentum = {"name": "ademamix", **options}
    pipeline = build_pipeline("adamw", momentum=momentum, correction=correction)
    torch.testing.assert_close(ours(pipeline, shape, lr=0.01), expected, **CLOSE)


def test_ademamix_warms_up_by_schedules_of_its_parts_too():
    momentum = {
        "name": "ademamix",
        "slow_beta": {"name": "half_life", "start": 0.9, "stop": 0.99, "steps": 10},
        "alpha": {"name": "linear", "start": 0.0, "stop": 3.0, "steps": 10},
    }
    expected = paper.ademamix(*stream((5, 7)), lr=0.01, slow_beta=0.99, alpha=3.0, warmup=10)
    found = ours(build_pipeline("adamw", momentum=momentum), (5, 7), lr=0.01)
    torch.testing.assert_close(found, expected, **CLOSE)


@shapes
@pytest.mark.parametrize("warmup", [0, 8])
@pytest.mark.parametrize("corrected", [False, True])
def test_simplified_ademamix_equals_the_paper(shape, warmup, corrected):
    options = {"alpha": 10.0, "warmup": warmup, "corrected": corrected}
    expected = simplified_ademamix(*stream(shape), lr=1e-3, **options)
    pipeline = build_pipeline("simplified_ademamix", momentum={"name": "accumulator", **options})
    torch.testing.assert_close(ours(pipeline, shape, lr=1e-3), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "late"}, "correction cannot be `late`"),
        ({"eps": {"name": "linear", "start": 1e-8, "stop": -1.0, "steps": 5}}, "eps must be"),
        ({"momentum": {"name": "accumulator", "warmup": -1}}, "-1 steps"),
        ({"momentum": {"name": "accumulator", "start_beta": 1.0}}, "start_beta must be"),
        ({"momentum": {"name": "heavy_ball", "dampening": 0.5, "nesterov": True}}, "dampening"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptimizerError, match=message):
        build_pipeline("adamw", **options)
