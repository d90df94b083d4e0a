"""The laws that hold for every composition of registered parts."""

import itertools

import pytest
import torch
from optim.harness import (
    NUM_STEPS,
    Case,
    Model,
    assert_same_bits,
    backward,
    batches,
    cases_with_every_choice,
    combinations,
    copied,
    every_case,
    everything,
    make,
    moments,
    pairs,
    run,
    sums,
)

from acmsao_cli.optim import ComposedOptimizer, Stacking, accounting
from acmsao_cli.optim.registry import part_name

CASES = every_case()
# What learns in so many steps; one that has to find its rate first takes longer.
RATES = {"prodigy": 1.0, "dadaptation": 0.6, "a2grad": 2.0}
LEARNING, LEARNING_BY = 16, {"prodigy": 30}
every = pytest.mark.parametrize("case", CASES, ids=str)
# For laws in which parts do not meet: each part is asked, but not beside each other one.
few = pytest.mark.parametrize("case", cases_with_every_choice(times=3), ids=str)


@every
def test_stepping_during_backward_equals_stepping_after_it(case: Case):
    after, during = moments(case), make(case)
    handle = during[1].attach_to_backward(lambda: True)
    run(*during)
    assert_same_bits(after[NUM_STEPS - 1].everything, everything(*during))
    assert all(p.grad is None for p in during[0].parameters())
    handle.remove()
    run(*during, start=NUM_STEPS, stop=NUM_STEPS + 1)
    assert_same_bits(after[NUM_STEPS].everything, everything(*during))


@every
def test_resumed_equals_uninterrupted(case: Case):
    *_, stopped, _, whole, _ = moments(case)
    second = make(case)
    second[0].load_state_dict(stopped.weights)
    assert second[1].load_state(copied(stopped.state), stopped.header) == []
    run(*second, start=NUM_STEPS - 2)
    assert_same_bits(whole.everything, everything(*second))


@every
def test_stacked_equals_single(case: Case):
    single, stacked = moments(case)[NUM_STEPS - 1], make(case, stacking=Stacking())
    run(*stacked)
    if not sums(case.pipeline):
        assert_same_bits(single.everything, everything(*stacked))
    for name, value in single.weights.items():
        torch.testing.assert_close(stacked[0].get_parameter(name), value, rtol=1e-2, atol=1e-3)


@every
def test_state_bytes_equal_meta_bytes(case: Case):
    model, optimizer = make(case, stacking=Stacking())
    assert optimizer.state_bytes() == 0
    run(model, optimizer, stop=1)
    optimizer.allocate()
    after_one = optimizer.state_bytes()
    run(model, optimizer, start=1, stop=3)
    shapes = [p.shape for p in model.parameters()]
    assert after_one == optimizer.state_bytes() == accounting.state_bytes(case.pipeline, shapes)


@few
def test_workspace_of_a_real_step_equals_the_meta_device(case: Case):
    model, optimizer = make(case, stacking=Stacking())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    shapes = [p.shape for p in model.parameters()]
    planned = accounting.workspace_bytes(case.pipeline, shapes, case.dtype)
    assert accounting.step_workspace(optimizer) == planned > 0


@every
def test_learns(case: Case):
    """A tiny network: a quadratic in the weights would ask OrthoGrad to change their length."""
    name = part_name(case.pipeline.rule)
    model, optimizer = make(case, lr=RATES.get(name, 0.04))
    losses = []
    for _ in range(LEARNING_BY.get(name, LEARNING)):
        optimizer.zero_grad()
        losses.append(backward(model, next(batches())))
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@every
def test_zero_gradients_stay_finite(case: Case):
    model, optimizer = make(case)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step == 2))
        optimizer.step()
    for value in everything(model, optimizer).values():
        assert value.isfinite().all()


@few
def test_lr_zero_changes_nothing(case: Case):
    model, optimizer = make(case, lr=0.0)
    run(model, optimizer)
    assert_same_bits(Model(case.dtype).state_dict(), model.state_dict())


@every
def test_a_parameter_without_gradient_is_left_alone(case: Case):
    *_, last = moments(case)
    assert torch.equal(last.weights["spare"], Model(case.dtype).spare)
    assert not any(key.startswith("spare/") for key in last.state)


@every
def test_gradients_are_not_modified(case: Case):
    model, optimizer = make(case)
    backward(model, next(batches()))
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    assert_same_bits(before, {n: p.grad for n, p in model.named_parameters() if n in before})


@every
def test_a_step_on_the_meta_device_runs(case: Case):
    model = Model(case.dtype).to("meta")
    optimizer = ComposedOptimizer(model.named_parameters(), case.pipeline, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    assert optimizer.state_bytes() > 0


def test_the_signature_names_every_part():
    pipelines = {case.pipeline for case in CASES}
    assert len({pipeline.signature() for pipeline in pipelines}) == len(pipelines)
    assert all(str(pipeline) == pipeline.signature() for pipeline in pipelines)


def test_every_pair_of_parts_is_among_the_cases():
    """Storages with rules, and every choice of a station with each of another's."""
    rows = list(combinations())
    choices = {station: {str(row[station]) for row in rows} for station in rows[0]}
    met = set().union(*(pairs(row) for row in rows))
    for one, other in itertools.combinations(choices, 2):
        for a, b in itertools.product(choices[one], choices[other]):
            impossible = (a, b) == ("kahan", "torch.float32")  # fp32 weights lose nothing
            assert impossible or (one, a, other, b) in met
