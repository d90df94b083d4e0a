"""Decay and rounding."""

import pytest
import torch
from optim.harness import make, run

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import ComposedOptimizer, build_pipeline


def stepped(weights, grads, *, lr=0.1, weight_decay=0.5, dtype=torch.float32, **parts):
    """One parameter after a stream of gradients."""
    parameter = torch.nn.Parameter(weights.to(dtype, copy=True))
    pipeline = build_pipeline(**{"name": "adamw", **parts})
    optimizer = ComposedOptimizer([parameter], pipeline, lr=lr, weight_decay=weight_decay)
    for grad in grads:
        parameter.grad = grad.to(dtype)
        optimizer.step()
    return parameter.detach()


WEIGHTS = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
GRADS = [torch.tensor([[1.0, 1.0, -1.0, -1.0]])]


def test_decoupled_decay_shrinks_every_weight():
    update = stepped(WEIGHTS, GRADS, weight_decay=0.0) - WEIGHTS
    torch.testing.assert_close(stepped(WEIGHTS, GRADS), WEIGHTS * (1 - 0.1 * 0.5) + update)


def test_cautious_decay_shrinks_weights_that_the_update_shrinks():
    update = stepped(WEIGHTS, GRADS, weight_decay=0.0) - WEIGHTS
    shrink = torch.where(torch.sign(update) == -torch.sign(WEIGHTS), 1 - 0.1 * 0.5, 1.0)
    torch.testing.assert_close(stepped(WEIGHTS, GRADS, decay="cautious"), WEIGHTS * shrink + update)


def test_l2_decay_is_torch_adam():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 5, generator=generator)
    grads = [torch.randn(4, 5, generator=generator) for _ in range(6)]
    theirs = torch.nn.Parameter(weights.clone())
    adam = torch.optim.Adam([theirs], lr=0.1, weight_decay=0.5)
    for grad in grads:
        theirs.grad = grad
        adam.step()
    torch.testing.assert_close(stepped(weights, grads, decay="l2"), theirs.detach())


def test_kahan_weights_take_the_course_of_fp32_weights():
    """bf16 and what was rounded off are the fp32 weight to the last bit."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 7, generator=generator).bfloat16().float()
    grads = [torch.randn(6, 7, generator=generator).bfloat16().float() for _ in range(50)]
    options = {"lr": 1e-4, "weight_decay": 0.1}
    exact = stepped(weights, grads, **options)
    kept = torch.nn.Parameter(weights.bfloat16())
    optimizer = ComposedOptimizer([kept], build_pipeline("adamw", rounding="kahan"), **options)
    for grad in grads:
        kept.grad = grad.bfloat16()
        optimizer.step()
    rest = optimizer.state_tensors()["0/rounded_off/value"]
    assert rest.dtype == torch.int16
    whole = (kept.detach().float().view(torch.int32) + rest.to(torch.int32)).view(torch.float32)
    assert torch.equal(whole, exact)
    assert not torch.equal(whole, kept.detach().float())


def test_kahan_is_refused_for_weights_that_lose_nothing():
    with pytest.raises(OptimizerError, match="`first` is") as caught:
        make(build_pipeline("adamw", rounding="kahan"))
    assert caught.value.hint


def test_kahan_trains():
    model, optimizer = make(build_pipeline("adamw", rounding="kahan"), torch.bfloat16)
    run(model, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())
