"""Which kernel stands for a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.kernels.composed import Composed
from acmsao_cli.optim.kernels.parts import Parts, recognise
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import State


class Kernel(Protocol):
    """A whole step of parameters of one shape, with the results of `Pipeline.step`."""

    def step(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: State,
        ctx: Context,
        noise: Noise,
    ) -> Tensor:
        """Advance a batch in place; return the norms of the gradients, fp32 (batch,).

        Weights and gradients lie where they lie, each of any shape that holds ctx.rows x ctx.cols
        elements in order and gradients all of one dtype; `state` is the whole batch's.
        """
        ...


@functools.lru_cache  # asked for every parameter at every step
def find(pipeline: Pipeline, device: torch.device, weight_dtype: torch.dtype) -> Kernel | None:
    """Return the kernel that stands for this pipeline there, or None: then the pipeline runs."""
    try:
        return require(pipeline, device, weight_dtype)
    except OptimizerError:
        return None


def require(pipeline: Pipeline, device: torch.device, weight_dtype: torch.dtype) -> Kernel:
    """Return the kernel, built if need be, or raise OptimizerError with what it cannot do.

    On the meta device, where runs are planned for any other, nothing is built: the pipeline stands
    for its kernel, whose scratch (partial sums) is smaller than a block's temporaries.
    """
    parts = recognise(pipeline, weight_dtype)
    if device.type == "meta":
        return Composed(pipeline)
    if device.type == "cpu":
        from acmsao_cli.optim.kernels import cpu

        return cpu.kernel(parts)
    if device.type == "cuda":
        return _cuda(parts)
    raise OptimizerError(f"there are no kernels for device `{device}`", hint="use cpu or cuda")


def _cuda(parts: Parts) -> Kernel:
    try:
        from acmsao_cli.optim.kernels import cuda
    except ImportError as error:
        raise OptimizerError(
            f"kernels on CUDA need triton: {error}", hint="install triton, or set kernels=false"
        ) from None
    return cuda.kernel(parts)
