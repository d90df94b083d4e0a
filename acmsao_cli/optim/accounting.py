"""Bytes, counted by running the real code on meta tensors: no formula exists twice."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acmsao_cli.optim.batches import Member, Stacking, matrix_shape, plan_batches
from acmsao_cli.optim.optimizer import ComposedOptimizer
from acmsao_cli.optim.pipeline import Pipeline

_META = torch.device("meta")


class LiveBytes(TorchDispatchMode):
    """While active, follows the storages that operations create; `peak` is their largest sum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation; storages that its arguments do not already hold are new."""
        before = {id(s) for s in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if id(storage) not in before | self._known:
                self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


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
        Member(str(number), number, 0, torch.empty(tuple(s), dtype=weight_dtype, device=_META))
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
    with LiveBytes() as bytes_seen:
        optimizer.step()
    return int(bytes_seen.peak)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
