"""State in host memory on a CUDA device: the copies are ordered, asynchronous and bounded."""

from __future__ import annotations

import pytest
import torch
from optim.storage.banked import Banked
from torch import Tensor, nn

from acmsao_cli.optim import ONE_BY_ONE, ComposedOptimizer, Pipeline, prefetch
from acmsao_cli.optim.storage.policy import build_storage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
COUNT, SIDE = 12, 2048


def optimizer_of(host: bool, kept: str) -> ComposedOptimizer:
    rule = Banked(host=host, visits=2)
    pipeline = Pipeline(rule, build_storage(kept, rule.slots))
    named = [
        (str(number), nn.Parameter(torch.zeros(SIDE, SIDE, device="cuda")))
        for number in range(COUNT)
    ]
    return ComposedOptimizer(named, pipeline, lr=0.01, seed=3, stacking=ONE_BY_ONE)


def run(optimizer: ComposedOptimizer, backward: bool, steps: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(steps):
        for member in optimizer.members:
            shape = member.parameter.shape
            member.parameter.grad = torch.randn(shape, device="cuda", generator=generator)
        if backward:
            for member in reversed(optimizer.members):
                optimizer.step_parameter(member.parameter)
        optimizer.step()
    weights = {member.name: member.parameter.detach() for member in optimizer.members}
    return {**weights, **optimizer.state_tensors()}


@pytest.mark.parametrize("limit", [prefetch.LIMIT, 0], ids=["ahead", "as asked"])
@pytest.mark.parametrize("backward", [False, True], ids=["step", "backward"])
@pytest.mark.parametrize("kept", ["fp32", "factored_4bit"])
def test_the_bits_are_those_of_state_on_the_device(
    kept: str, backward: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "LIMIT", limit)
    resident, away = (run(optimizer_of(host, kept), backward) for host in (False, True))
    for key, value in resident.items():
        assert torch.equal(value.cpu(), away[key].cpu()), key
    assert all(
        tensor.device.type == "cpu" and (tensor.is_pinned() or not tensor.numel())
        for key, tensor in away.items()
        if "/bank/" in key
    )


def test_no_more_than_two_turns_are_on_the_device_however_far_ahead_the_host_is() -> None:
    optimizer = optimizer_of(True, "fp32")
    run(optimizer, backward=False, steps=1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(optimizer, backward=False, steps=1)  # a visit
    cell, temporaries = 4 * SIDE * SIDE, 128 << 20
    assert torch.cuda.max_memory_allocated() - before <= 2 * cell + temporaries


def test_a_step_waits_for_the_device_only_at_its_end() -> None:
    optimizer = optimizer_of(True, "factored_4bit")
    run(optimizer, backward=False, steps=1)
    for member in optimizer.members:
        member.parameter.grad = torch.ones_like(member.parameter)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for member in optimizer.members:
            optimizer.step_parameter(member.parameter)
    finally:
        torch.cuda.set_sync_debug_mode("default")
