"""A pipeline and its kernel on the same inputs, and how close they have to stay."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim import Pipeline
from acmsao_cli.optim.kernels import Kernel, require
from acmsao_cli.optim.noise import Noise, hash_numbers
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import State

CPU = torch.device("cpu")
FEW = 0.002  # of the numbers may differ, by a unit in bf16's last place
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="needs a C compiler"
)


@dataclass
class Run:
    """Parameters (batch, rows, cols) under way, with their numbers."""

    weights: Tensor
    state: State
    numbers: Tensor
    steps: int = 0
    parameters: list[Tensor] | None = None  # what a kernel steps instead of the weights

    def step(self, by: Pipeline | Kernel, grad: Tensor, **circumstances: Any) -> Tensor | None:
        """Step by the pipeline at once or by a kernel, which takes each parameter on its own."""
        self.steps += 1
        _, rows, cols = self.weights.shape
        given = {"lr": 1e-3, "weight_decay": 0.1, **circumstances}
        ctx = Context(
            step=self.steps,
            first=self.steps == 1,
            weights=self.weights,
            rows=rows,
            cols=cols,
            **given,
        )
        noise = Noise(self.numbers, hash_numbers(7, self.steps))
        if isinstance(by, Pipeline):
            return by.step(self.weights, grad, self.state, ctx, noise)
        parameters = self.parameters or self.weights.unbind()
        return by.step(parameters, grad.unbind(), self.state, ctx, noise)


def start(
    pipeline: Pipeline,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Run:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    numbers = torch.arange(4, 4 + shape[0], dtype=torch.int32, device=device).view(-1, 1, 1)
    return Run(weights, pipeline.allocate(*shape, device), numbers)


def gradients(
    shape: tuple[int, int, int], dtype: torch.dtype, count: int = 3, scale: float = 1.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    spread = torch.randn(shape, generator=generator).mul_(2).exp_().mul_(scale)
    return [(torch.randn(shape, generator=generator) * spread).to(dtype) for _ in range(count)]


def both(
    pipeline: Pipeline,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.bfloat16,
    grads: list[Tensor] | None = None,
    kernel: Kernel | None = None,
    **circumstances: Any,
) -> tuple[Run, Run]:
    """Run the pipeline and its kernel side by side."""
    kernel = kernel or require(pipeline, CPU, dtype)
    slow, fast = start(pipeline, shape, dtype), start(pipeline, shape, dtype)
    for grad in gradients(shape, dtype) if grads is None else grads:
        kept = grad.clone()
        slow.step(pipeline, grad, **circumstances)
        fast.step(kernel, grad, **circumstances)
        assert torch.equal(grad.nan_to_num(), kept.nan_to_num()), "the gradient was changed"
    return slow, fast


def assert_close(slow: Run, fast: Run, atol: float = 1e-7) -> None:
    assert_near(slow.weights, fast.weights, "weights", atol)
    for cell, pieces in slow.state.items():
        for name, piece in pieces.items():
            assert_near(piece, fast.state[cell][name], f"{cell}/{name}", atol)


def assert_same(slow: Run, fast: Run) -> None:
    assert torch.equal(slow.weights, fast.weights)
    for cell, pieces in slow.state.items():
        for name, piece in pieces.items():
            assert torch.equal(piece, fast.state[cell][name]), f"{cell}/{name}"


def assert_near(expected: Tensor, actual: Tensor, name: str, atol: float = 1e-7) -> None:
    assert expected.dtype == actual.dtype
    expected, actual = expected.cpu(), actual.cpu()
    if expected.dtype == torch.uint8:
        different = (expected ^ actual).to(torch.int32)
        bits = sum(((different >> place) & 1).sum().item() for place in range(8))
        assert bits <= FEW * 8 * expected.numel(), name
    elif expected.dtype == torch.bfloat16:
        apart = (ordered(expected) - ordered(actual)).abs()
        assert apart.max() <= 1, name
        assert apart.count_nonzero() <= FEW * apart.numel(), name
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol, msg=name)


def ordered(halves: Tensor) -> Tensor:
    """Whole numbers in the order of the bf16 numbers, neighbours one apart."""
    bits = halves.view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
