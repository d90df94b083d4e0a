"""A gradient that is not finite leaves its parameter and all that is remembered of it alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim.harness import Model, backward, batches, make, run
from torch import Tensor

from acmsao_cli.optim import ComposedOptimizer, Pipeline, Stacking, build_pipeline

INNER: dict[str, Any] = {
    "adamw": "adamw",
    "amsgrad": {"name": "adamw", "amsgrad": True, "betas": (0.9, 0.9)},
    "adopt": "adopt",
    "lion": "lion",
    "muon": "muon",
}
RULES = [*INNER, "prodigy", "ring"]
SHORT: dict[str, Any] = {"scales": (1, 2, 5), "total_steps": 30, "cycle_period": 5}
OF_THE_RUN = ("numbers/", "kept_share/", "similarity/", "kept/")
BEFORE, AFTER = 9, 5
rules = pytest.mark.parametrize("rule", RULES)


def guarded(rule: str, **options: Any) -> Pipeline:
    if rule == "prodigy":
        return build_pipeline("prodigy", inner={"name": "acmsao", **SHORT}, **options)
    if rule == "ring":
        return build_pipeline("acmsao", bank="ring", history_size=2, **SHORT, **options)
    return build_pipeline("acmsao", inner=INNER[rule], **SHORT, **options)


def prepared(pipeline: Pipeline, **options: Any) -> tuple[Model, ComposedOptimizer]:
    """After some steps, with the gradients of the next."""
    model, optimizer = make(pipeline, **options)
    run(model, optimizer, stop=BEFORE)
    optimizer.zero_grad()
    backward(model, next(batches(BEFORE, BEFORE + 1)))
    return model, optimizer


def held(model: Model, optimizer: ComposedOptimizer, name: str) -> dict[str, Tensor]:
    """A parameter's weights and averages."""
    state = optimizer.state_tensors().items()
    values = {key: value.clone() for key, value in state if key.startswith(f"{name}/")}
    return values | {"weights": dict(model.named_parameters())[name].detach().clone()}


def averages(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What must stay to the bit: all but how far the run is, and sums of the step before."""
    kept = {
        key: value for key, value in values.items() if not any(part in key for part in OF_THE_RUN)
    }
    for key, value in values.items():
        if "/numbers/" in key:  # mean and spread, the highest rate, and how many were refused
            kept[key] = value[..., 1:]
    return kept


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("bad", "storage", "stacking"),
    [
        (math.nan, "fp32", None),
        (math.inf, "fp32", Stacking()),
        (-math.inf, "bf16", None),
        (1e30, "bf16", Stacking()),
    ],
    ids=str,
)
def test_it_stays_to_the_bit_and_the_others_are_stepped(rule, bad, storage, stacking):
    model, optimizer = prepared(guarded(rule, storage=storage), stacking=stacking)
    assert model.first.grad is not None
    model.first.grad[2, 3] = bad
    names = ("first", "second", "bias")
    before = {name: held(model, optimizer, name) for name in names}
    optimizer.step()
    after = {name: held(model, optimizer, name) for name in names}
    kept, found = averages(before["first"]), averages(after["first"])
    for key, value in kept.items():
        if not key.endswith(("gradient_sum/value", "start/value")):  # prodigy's own
            assert torch.equal(value, found[key]), key
    for name in ("second", "bias"):
        assert not torch.equal(before[name]["weights"], after[name]["weights"])
        assert not torch.equal(
            *(values[f"{name}/momentum/value"] for values in (before[name], after[name]))
        )
    run(model, optimizer, start=BEFORE + 1, stop=BEFORE + 1 + AFTER)
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.first.detach(), before["first"]["weights"])


@rules
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_also_in_the_first_steps(rule, stop):
    model, optimizer = make(guarded(rule))
    run(model, optimizer, stop=stop)
    optimizer.zero_grad()
    backward(model, next(batches(0, 1)))
    assert model.first.grad is not None
    model.first.grad[0, 0] = math.nan
    weights = model.first.detach().clone()
    optimizer.step()
    assert torch.equal(model.first.detach(), weights)
    run(model, optimizer, start=stop, stop=stop + AFTER)
    assert all(value.isfinite().all() for value in optimizer.state_tensors().values())
    assert not torch.equal(model.first.detach(), weights)


@rules
def test_in_few_bits_the_weights_stay_and_what_is_stored_anew_does_not_drift(rule):
    """Codes are rounded again, without a bias: after many bad steps it is near to what it was."""
    model, optimizer = prepared(guarded(rule, storage="factored_4bit"))
    assert model.first.grad is not None
    before = held(model, optimizer, "first")
    grad = model.first.grad.clone()
    for _ in range(20):
        model.first.grad = torch.full_like(grad, math.nan)
        for name, parameter in model.named_parameters():
            if name != "first":
                parameter.grad = None
        optimizer.step()
    after = held(model, optimizer, "first")
    assert torch.equal(before["weights"], after["weights"])
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    model.first.grad = grad
    optimizer.step()
    assert model.first.isfinite().all()
    assert not torch.equal(model.first.detach(), before["weights"])


@rules
@pytest.mark.parametrize(
    ("size", "storage"),
    [
        *((size, "fp32") for size in (0.0, 1e18, 1e20, 1e-20, 1e-30)),
        (1e20, "bf16"),
        (1e18, "factored_4bit"),
        (1e-30, "factored_4bit"),
    ],
)
def test_zero_huge_and_tiny_gradients_stay_finite_and_training_goes_on(rule, storage, size):
    model, optimizer = make(guarded(rule, storage=storage))
    for step in range(15):
        optimizer.zero_grad()
        backward(model, next(batches(step, step + 1)))
        if step in (0, 4, 5, 10):
            for parameter in model.parameters():
                if parameter.grad is not None and parameter.numel() > 1:
                    parameter.grad.mul_(size)
        optimizer.step()
    values = [*model.parameters(), *optimizer.state_tensors().values()]
    assert all(value.isfinite().all() for value in values if value.is_floating_point())
    before = model.first.detach().clone()
    run(model, optimizer, start=15, stop=18)
    assert model.first.isfinite().all()
    assert not torch.equal(model.first.detach(), before)


@rules
def test_many_bad_steps_do_not_count_as_gradients(rule):
    """Refused ones in a row are those of finite size."""
    model, optimizer = prepared(guarded(rule))
    key = "first/numbers/value"
    before = optimizer.state_tensors()[key].clone()
    for _ in range(6):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = torch.full_like(parameter, math.nan)
        optimizer.step()
    assert torch.equal(optimizer.state_tensors()[key][..., 1:], before[..., 1:])


def test_a_number_whose_square_fp32_cannot_hold_is_not_finite_either():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = ComposedOptimizer([("w", parameter)], guarded("adamw"), lr=0.01)
    for grad in (1.0, 1e20, 1.0):
        parameter.grad = torch.full((1,), grad)
        optimizer.step()
    assert all(value.isfinite().all() for value in optimizer.state_tensors().values())
