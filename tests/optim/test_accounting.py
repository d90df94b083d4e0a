"""What a step needs, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acmsao_cli.optim import ComposedOptimizer, build_pipeline
from acmsao_cli.optim.accounting import repeats_counted
from acmsao_cli.optim.tracing import WORKSPACE, StorageTracer

SHAPES = [(64, 48)] * 3 + [(48, 64), (300, 7)] + [(64,)] * 4 + [(8, 3, 3, 3)] * 2
META = torch.device("meta")


def ready(says: dict[str, Any], dtype: torch.dtype) -> ComposedOptimizer:
    weights = [
        (str(n), torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=META)))
        for n, shape in enumerate(SHAPES)
    ]
    for _, weight in weights:
        weight.grad = torch.empty_like(weight)
    optimizer = ComposedOptimizer(weights, build_pipeline(**says), lr=1e-3, weight_decay=0.1)
    optimizer.skip_to_full_step()
    optimizer.allocate()
    return optimizer


def stepped(optimizer: ComposedOptimizer, fused: bool) -> None:
    if fused:
        for member in optimizer.members:
            optimizer.step_parameter(member.parameter)
            member.parameter.grad = None
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "says",
    [
        {"name": "adamw"},
        {"name": "adamw", "storage": "factored"},
        {"name": "acmsao", "storage": "factored_4bit", "ram_offload": (False, True, True)},
        {"name": "prodigy", "storage": "bf16"},
        {"name": "muon"},
    ],
    ids=["adamw", "factored", "acmsao", "prodigy", "muon"],
)
def test_counting_repeats_finds_the_peak_that_running_them_has(says, dtype, fused):
    peaks = []
    for counted in (False, True):
        optimizer = ready(says, dtype)
        with StorageTracer(512) as tracer:
            tracer.claim((member.parameter for member in optimizer.members), "weights")
            if counted:
                with repeats_counted(optimizer, tracer):
                    stepped(optimizer, fused)
            else:
                stepped(optimizer, fused)
        peaks.append(dict(tracer.peak))
    assert peaks[0] == peaks[1]
    assert peaks[0][WORKSPACE] > 0


def test_a_step_afterwards_is_run_again():
    optimizer = ready({"name": "adamw"}, torch.float32)
    with StorageTracer() as tracer, repeats_counted(optimizer, tracer):
        optimizer.step()
    with StorageTracer() as tracer:
        optimizer.step()
    assert tracer.peak_bytes > 0
    assert "_step" not in vars(optimizer)
