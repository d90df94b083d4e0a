"""Every part computes what its paper says, to fp32 rounding."""

import pytest
import torch
from optim.trajectory import SHAPES, ours, stream
from reference import adamw as adamw_paper
from reference import edits as edits_paper
from reference.lion import lion as lion_paper

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.edits.direction import UpdateRmsClip, cautious, grams
from acmsao_cli.optim.edits.gradient import RmsClip, orthograd
from acmsao_cli.optim.rules.base import Context


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ratio", ["divide", "atan2"])
def test_adamw_equals_the_paper(shape, ratio):
    expected = adamw_paper.adamw(*stream(shape), lr=0.01, weight_decay=0.1, ratio=ratio)
    found = ours(build_pipeline("adamw", ratio=ratio), shape, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adamw_equals_torch(shape):
    weights, grads = stream(shape)
    parameter = torch.nn.Parameter(weights)
    optimizer = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    found = ours(build_pipeline("adamw", betas=(0.8, 0.95)), shape, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(found, parameter.detach().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ademamix_equals_the_paper(shape):
    options = {"slow_beta": 0.99, "alpha": 3.0}
    expected = adamw_paper.ademamix(*stream(shape), lr=0.01, **options)
    pipeline = build_pipeline("adamw", momentum={"name": "ademamix", **options})
    torch.testing.assert_close(ours(pipeline, shape, lr=0.01), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lion_equals_the_paper(shape):
    expected = lion_paper(*stream(shape), lr=0.01, weight_decay=0.1)
    found = ours(build_pipeline("lion"), shape, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def context(weights: torch.Tensor) -> Context:
    rows, cols = weights.shape[1:]
    return Context(1, first=True, lr=0.1, weight_decay=0.0, weights=weights, rows=rows, cols=cols)


def test_edits_equal_the_papers_for_every_member_of_a_batch():
    generator = torch.Generator().manual_seed(2)
    weights, grad, update = (torch.randn(3, 4, 5, generator=generator) for _ in range(3))
    ctx = context(weights)
    edited = {
        "orthograd": (orthograd(grad, ctx), [weights, grad], edits_paper.orthograd),
        "rms_clip": (RmsClip(0.5)(grad, ctx), [grad], lambda g: edits_paper.rms_clip(g, 0.5)),
        "cautious": (cautious(update, grad, ctx), [update, grad], edits_paper.cautious),
        "grams": (grams(update, grad, ctx), [update, grad], edits_paper.grams),
        "update_rms_clip": (
            UpdateRmsClip(0.5)(update, grad, ctx),
            [update],
            lambda u: edits_paper.rms_clip(u, 0.5),
        ),
    }
    for name, (found, arguments, paper) in edited.items():
        expected = torch.stack([paper(*members) for members in zip(*arguments, strict=True)])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_rms_clip_leaves_a_small_gradient_as_it_is():
    grad = torch.full((1, 4, 5), 0.3)
    assert torch.equal(RmsClip()(grad, context(grad)), grad)


def test_orthograd_of_a_gradient_along_the_weights_is_nearly_nothing():
    weights = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(4))
    assert orthograd(2.0 * weights, context(weights)).norm() < 1e-2 * weights.norm()
