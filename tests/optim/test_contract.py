"""The laws that hold for every composition of registered parts."""

import pytest
import torch
from optim.harness import (
    DTYPES,
    NUM_STEPS,
    Model,
    assert_same_bits,
    backward,
    batches,
    every_pipeline,
    everything,
    make,
    run,
    sums,
)

from acmsao_cli.optim import ComposedOptimizer, Pipeline, Stacking, accounting

PIPELINES = list(every_pipeline())
every = pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])


@every
@in_every_dtype
def test_stepping_during_backward_equals_stepping_after_it(pipeline: Pipeline, dtype):
    after, during = make(pipeline, dtype), make(pipeline, dtype)
    run(*after)
    handle = during[1].attach_to_backward(lambda: True)
    run(*during)
    assert_same_bits(everything(*after), everything(*during))
    assert all(p.grad is None for p in during[0].parameters())
    handle.remove()
    run(*after, start=NUM_STEPS, stop=NUM_STEPS + 1)
    run(*during, start=NUM_STEPS, stop=NUM_STEPS + 1)
    assert_same_bits(everything(*after), everything(*during))


@every
@in_every_dtype
def test_resumed_equals_uninterrupted(pipeline: Pipeline, dtype):
    whole, first, second = (make(pipeline, dtype) for _ in range(3))
    run(*whole)
    run(*first, stop=3)
    saved = {key: tensor.clone() for key, tensor in first[1].state_tensors().items()}
    second[0].load_state_dict(first[0].state_dict())
    assert second[1].load_state(saved, first[1].state_header()) == []
    run(*second, start=3)
    assert_same_bits(everything(*whole), everything(*second))


@every
@in_every_dtype
def test_stacked_equals_single(pipeline: Pipeline, dtype):
    single, stacked = make(pipeline, dtype), make(pipeline, dtype, stacking=Stacking())
    run(*single)
    run(*stacked)
    if not sums(pipeline):
        assert_same_bits(everything(*single), everything(*stacked))
    for name, value in single[0].named_parameters():
        torch.testing.assert_close(stacked[0].get_parameter(name), value, rtol=1e-2, atol=1e-3)


@every
def test_state_bytes_equal_meta_bytes(pipeline: Pipeline):
    model, optimizer = make(pipeline, stacking=Stacking())
    assert optimizer.state_bytes() == 0
    run(model, optimizer, stop=1)
    optimizer.allocate()
    after_one = optimizer.state_bytes()
    run(model, optimizer, start=1, stop=3)
    shapes = [p.shape for p in model.parameters()]
    assert after_one == optimizer.state_bytes() == accounting.state_bytes(pipeline, shapes)


@every
@in_every_dtype
def test_workspace_of_a_real_step_equals_the_meta_device(pipeline: Pipeline, dtype):
    model, optimizer = make(pipeline, dtype, stacking=Stacking())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    planned = accounting.workspace_bytes(pipeline, [p.shape for p in model.parameters()], dtype)
    assert accounting.step_workspace(optimizer) == planned > 0


@every
def test_learns(pipeline: Pipeline):
    """A tiny network: a quadratic in the weights would ask OrthoGrad to change their length."""
    model, optimizer = make(pipeline, lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(backward(model, next(batches())))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@every
@in_every_dtype
def test_zero_gradients_stay_finite(pipeline: Pipeline, dtype):
    model, optimizer = make(pipeline, dtype)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step == 2))
        optimizer.step()
    for value in everything(model, optimizer).values():
        assert value.isfinite().all()


@every
@in_every_dtype
def test_lr_zero_changes_nothing(pipeline: Pipeline, dtype):
    model, optimizer = make(pipeline, dtype, lr=0.0)
    run(model, optimizer)
    assert_same_bits(Model(dtype).state_dict(), model.state_dict())


@every
def test_a_parameter_without_gradient_is_left_alone(pipeline: Pipeline):
    model, optimizer = make(pipeline)
    run(model, optimizer)
    assert torch.equal(model.spare, Model(torch.float32).spare)
    assert not any(key.startswith("spare/") for key in optimizer.state_tensors())


@every
@in_every_dtype
def test_gradients_are_not_modified(pipeline: Pipeline, dtype):
    model, optimizer = make(pipeline, dtype)
    backward(model, next(batches()))
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    assert_same_bits(before, {n: p.grad for n, p in model.named_parameters() if n in before})


@every
def test_a_step_on_the_meta_device_runs(pipeline: Pipeline):
    model = Model(torch.bfloat16).to("meta")
    optimizer = ComposedOptimizer(model.named_parameters(), pipeline, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    assert optimizer.state_bytes() > 0


@every
def test_the_signature_names_every_part(pipeline: Pipeline):
    assert len({p.signature() for p in PIPELINES}) == len(PIPELINES)
    assert str(pipeline) == pipeline.signature()
