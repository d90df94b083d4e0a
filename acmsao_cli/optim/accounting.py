"""Bytes, counted by running the real code on meta tensors: no formula exists twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from acmsao_cli.optim.batches import Member, Stacking, matrix_shape, plan_batches
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.tracing import StorageTracer

_META = torch.device("meta")


def state_bytes(pipeline: Pipeline, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of state for parameters of these shapes; stacking does not change it."""
    return sum(
        piece.nbytes
        for shape in shapes
        for pieces in pipeline.allocate(1, *matrix_shape(shape), _META).values()
        for piece in pieces.values()
    )


def workspace_bytes(
    pipeline: Pipeline,
    shapes: Iterable[Sequence[int]],
    weight_dtype: torch.dtype,
    stacking: Stacking | None = None,
) -> int:
    """Peak bytes of temporaries in one step, beside weights, gradients and state.

    Stepping during backward is `stacking=ONE_BY_ONE`. Batches alike need the same, so one is run.
    """
    stacking = stacking or Stacking()
    members = [
        Member(str(number), number, 0, 0, torch.empty(tuple(s), dtype=weight_dtype, device=_META))
        for number, s in enumerate(shapes)
    ]
    batches = plan_batches(members, stacking)
    distinct = {(b.rows, b.cols, len(b.members)): b.members for b in batches}.values()
    named = [(member.name, member.parameter) for batch in distinct for member in batch]
    optimizer = ComposedOptimizer(named, pipeline, lr=1e-3, weight_decay=0.1, stacking=stacking)
    for _, parameter in named:
        parameter.grad = torch.empty_like(parameter)
    return step_workspace(optimizer)


def step_workspace(optimizer: ComposedOptimizer) -> int:
    """Take one step and return the peak bytes of its temporaries, on any device."""
    optimizer.allocate()
    with StorageTracer() as tracer:
        optimizer.step()
    return int(tracer.peak_bytes)
