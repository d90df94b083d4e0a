"""Which kernel stands for a pipeline."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.kernels.parts import Parts, recognise
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import State


class Kernel(Protocol):
    """A whole step in place of `Pipeline.step`: same arguments, same results."""

    def __call__(
        self, weights: Tensor, grad: Tensor, state: State, ctx: Context, noise: Noise
    ) -> None: ...


@functools.lru_cache  # asked for every parameter at every step
def find(pipeline: Pipeline, device: torch.device, weight_dtype: torch.dtype) -> Kernel | None:
    """Return the kernel that stands for this pipeline there, or None: then the pipeline runs."""
    try:
        return require(pipeline, device, weight_dtype)
    except OptimizerError:
        return None


def require(pipeline: Pipeline, device: torch.device, weight_dtype: torch.dtype) -> Kernel:
    """Return the kernel, built if need be, or raise OptimizerError with what it cannot do."""
    parts = recognise(pipeline, weight_dtype)
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
