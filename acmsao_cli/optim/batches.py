"""Parameters as (batch, rows, cols): a vector has one row, a convolution is (out, in x kernel).

Small parameters of the same shape are stacked and stepped as one tensor, a large one alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.execution import BLOCK
from acmsao_cli.optim.in_rows import Gradient, GradientInRows
from acmsao_cli.optim.storage.codec import State

# Longer than any kernel of a convolution, shorter than any matrix worth the name.
MATRIX_SIDE: Final = 32


@dataclass(frozen=True)
class Member:
    """One parameter; `number` is its order of appearance, which seeds its noise."""

    name: str
    number: int
    group: int
    layer: int  # which of the optimizer's pipelines steps it
    parameter: Tensor

    @property
    def values(self) -> Tensor:
        """The real numbers that are stepped: a complex one is a pair."""
        return as_real(self.parameter.detach())

    @property
    def gradient(self) -> Tensor:
        """Their gradient; it has to be there."""
        grad = self.parameter.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            raise OptimizerError(
                f"`{self.name}` has a sparse gradient",
                hint="build the embedding with sparse=False",
            )
        return as_real(grad.detach())


def as_real(tensor: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones, in a last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(frozen=True)
class Stacking:
    """How parameters are joined or cut for stepping: a matter of speed and workspace.

    Results keep their bits, but for parts that sum over a parameter: the order of the sum changes.
    """

    below: int = 65_536  # parameters with fewer elements are stacked
    block: int = BLOCK  # elements at a time: of a stack, or of a larger parameter


ONE_BY_ONE = Stacking(below=0)


@dataclass(frozen=True)
class Batch:
    """Members of one shape, dtype, device and group."""

    members: tuple[Member, ...]
    rows: int
    cols: int
    numbers: Tensor  # int64 (batch,), on the parameters' device

    @property
    def device(self) -> torch.device:
        """Where the members live."""
        return self.members[0].parameter.device

    @property
    def layer(self) -> int:
        """Which of the optimizer's pipelines steps it."""
        return self.members[0].layer


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a parameter of this shape; of a stack of matrices, all their rows.

    Experts come as (experts, out, in): as (experts, out x in) a row would be a whole matrix, which
    no block of rows could make small. What has three sides and a short last one is a convolution.
    """
    if len(shape) < 2:
        return 1, math.prod(shape)
    if len(shape) == 3 and min(shape[1:]) >= MATRIX_SIDE:
        return shape[0] * shape[1], shape[2]
    return shape[0], math.prod(shape[1:])


def plan_batches(members: Iterable[Member], stacking: Stacking) -> list[Batch]:
    """Put every member into one batch, in order of first appearance."""
    alike: dict[object, list[Member]] = defaultdict(list)
    for member in members:
        alike[_likeness(member, stacking)].append(member)
    return [
        _batch(same[start : start + size])
        for same in alike.values()
        for size in [_stack_size(same[0].parameter, stacking)]
        for start in range(0, len(same), size)
    ]


def gather(tensors: Sequence[Tensor], rows: int, cols: int) -> Tensor:
    """Return (batch, rows, cols): a view of a single contiguous tensor, else a copy."""
    if len(tensors) == 1:
        return tensors[0].detach().reshape(1, rows, cols)
    return torch.stack([tensor.detach() for tensor in tensors]).view(len(tensors), rows, cols)


def scatter(gathered: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy what was gathered back, unless it is a view and so already there."""
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return
    values = [row.view(t.shape) for row, t in zip(gathered.unbind(), tensors, strict=True)]
    torch._foreach_copy_([tensor.detach() for tensor in tensors], values)


def row_by_row_norm(grad: Gradient, block: int) -> Tensor:
    """Norm of each member of (batch, rows, cols), fp32 (batch,), with about `block` temporaries.

    Row by row first: one fp32 sum over millions of entries loses digits on some devices.
    """
    if isinstance(grad, GradientInRows):
        cut: Iterable[Tensor] = grad.split(max(block // max(grad.cols, 1), 1))
    else:
        cut = grad.split(max(block // max(len(grad) * grad.shape[2], 1), 1), 1)
    parts = [torch.linalg.vector_norm(part, dim=2, dtype=torch.float32) for part in cut]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(parts, 1), dim=1)
    return norm


def row_of(state: State, index: int) -> State:
    """Views of one member's state, as a batch of one."""
    return {
        cell: {name: piece[index : index + 1] for name, piece in pieces.items()}
        for cell, pieces in state.items()
    }


def _likeness(member: Member, stacking: Stacking) -> object:
    parameter = member.parameter
    if parameter.numel() >= stacking.below:
        return member.number
    return parameter.shape, parameter.dtype, parameter.device, member.group


def _stack_size(parameter: Tensor, stacking: Stacking) -> int:
    return max(1, stacking.block // max(1, parameter.numel()))


def _batch(members: Sequence[Member]) -> Batch:
    first = members[0].values
    rows, cols = matrix_shape(first.shape)
    numbers = torch.tensor([member.number for member in members], device=first.device)
    return Batch(tuple(members), rows, cols, numbers)
