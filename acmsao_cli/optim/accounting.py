"""Bytes, counted by running the real code on meta tensors: no formula exists twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from acmsao_cli.optim.batches import Member, Stacking, matrix_shape, plan_batches
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.prefetch import Turn
from acmsao_cli.optim.storage.codec import State
from acmsao_cli.optim.tracing import StorageTracer

_META = torch.device("meta")


@dataclass(frozen=True)
class Placed:
    """Bytes by the memory they are in."""

    device: int
    host: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.device + self.host

    def __add__(self, other: Placed) -> Placed:
        """Add up."""
        return Placed(self.device + other.device, self.host + other.host)

    def __mul__(self, times: int) -> Placed:
        """So many of them."""
        return Placed(self.device * times, self.host * times)


def placed_bytes(pipeline: Pipeline, shapes: Iterable[Sequence[int]]) -> Placed:
    """Bytes of state for parameters of these shapes, where they live; stacking changes nothing."""
    device = host = 0
    away = {cell: pipeline.storage.codec(slot).offloaded for cell, slot in pipeline.cells()}
    for shape in shapes:
        for cell, pieces in pipeline.allocate(1, *matrix_shape(shape), _META).items():
            size = sum(piece.nbytes for piece in pieces.values())
            device, host = (device, host + size) if away[cell] else (device + size, host)
    return Placed(device, host)


def state_bytes(pipeline: Pipeline, shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of state for parameters of these shapes, wherever they live."""
    return placed_bytes(pipeline, shapes).total


def workspace_bytes(
    pipeline: Pipeline,
    shapes: Iterable[Sequence[int]],
    weight_dtype: torch.dtype,
    stacking: Stacking | None = None,
) -> int:
    """Peak bytes of temporaries in one step, beside weights, gradients and state.

    Stepping during backward is `stacking=ONE_BY_ONE`. The step is one that asks for every slot.
    Batches alike need the same, so one is run, unless what they need depends on the one after.
    """
    stacking = stacking or Stacking()
    members = [
        Member(str(number), number, 0, 0, torch.empty(tuple(s), dtype=weight_dtype, device=_META))
        for number, s in enumerate(shapes)
    ]
    batches = plan_batches(members, stacking)
    if not any(pipeline.storage.codec(slot).offloaded for slot in pipeline.slots):
        batches = list({(b.rows, b.cols, len(b.members)): b for b in batches}.values())
    named = [(member.name, member.parameter) for batch in batches for member in batch.members]
    optimizer = ComposedOptimizer(named, pipeline, lr=1e-3, weight_decay=0.1, stacking=stacking)
    for _, parameter in named:
        parameter.grad = torch.empty_like(parameter)
    optimizer.skip_to_full_step()
    return step_workspace(optimizer)


@dataclass(frozen=True)
class _Done:
    """What a step was: bytes it needed and moved, and which pieces of state it wrote."""

    needed: int
    crossed: Counter[str]
    written: Sequence[bool]


@contextmanager
def repeats_counted(optimizer: ComposedOptimizer, tracer: StorageTracer) -> Iterator[None]:
    """Within, of steps alike only the first is run, of the others what it needed is counted.

    For the meta device, where nothing comes of a step: a model has many weights of few shapes.
    """
    done: dict[Any, _Done] = {}
    run = optimizer._step

    def step(turn: Turn, pipeline: Pipeline, state: State) -> None:
        kind, pieces = _kind(turn), [p for cell in state.values() for p in cell.values()]
        if kind in done:
            alike = done[kind]
            tracer.pulse(alike.needed)
            tracer.crossed += alike.crossed
            # What was written goes home: whoever carries it sees that by its version.
            written = [p for p, was in zip(pieces, alike.written, strict=True) if was]
            torch.autograd.graph.increment_version(written)
            return
        before, crossed = [piece._version for piece in pieces], Counter(tracer.crossed)
        needed = tracer.needed_by(lambda: run(turn, pipeline, state))
        written_to = [p._version != was for p, was in zip(pieces, before, strict=True)]
        done[kind] = _Done(needed, tracer.crossed - crossed, written_to)

    vars(optimizer)["_step"] = step
    try:
        yield
    finally:
        del vars(optimizer)["_step"]


def _kind(turn: Turn) -> Any:
    """What a step's need depends on."""
    first = turn.members[0]
    return (
        *(turn.batch.layer, turn.batch.rows, turn.batch.cols, turn.batch.device, turn.step == 1),
        *(len(turn.members), first.group, first.values.shape, first.values.dtype),
        *(turn.gradient is not None, *turn.gradient_dtypes),
    )


def step_workspace(optimizer: ComposedOptimizer) -> int:
    """Take one step and return the peak bytes of its temporaries, on any device."""
    optimizer.allocate()
    with StorageTracer() as tracer:
        optimizer.step()
    return int(tracer.peak_bytes)
