"""The pipeline's twin in C: cpu.c, compiled for the parts at hand."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from acmsao_cli.optim.kernels import build
from acmsao_cli.optim.kernels.parts import MOMENTUM, SQUARE, Kept, Parts
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import Pieces, State

SOURCE: Final = Path(__file__).with_name("cpu.c")
_BLOCK: Final = 65_536  # elements of one task: in the caches, and worth a thread's while
_MAX_BLOCKS: Final = 64  # of a factored matrix: each keeps column sums


_Addresses = ctypes.POINTER(ctypes.c_void_p)


class _Job(ctypes.Structure):
    """`Job` of cpu.c."""

    _fields_ = (
        *((name, _Addresses) for name in ("weights", "grads")),
        *((name, ctypes.c_void_p) for name in ("momentum", "square")),
        *((name, ctypes.c_void_p) for name in ("momentum_row", "momentum_col")),
        *((name, ctypes.c_void_p) for name in ("square_row", "square_col")),
        *((name, ctypes.c_void_p) for name in ("sign", "partial", "squares", "norms", "numbers")),
        *((name, ctypes.c_int64) for name in ("rows", "cols", "block", "blocks")),
        ("salts", ctypes.c_int32 * 3),
        ("side", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("look", "pull", "keep_square", "pull_square")),
        *((name, ctypes.c_float) for name in ("eps", "shrink", "lr")),
    )


@dataclass(frozen=True)
class CpuKernel:
    """`Pipeline.step` for one composition, on the CPU and torch's number of threads."""

    parts: Parts

    def step(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: State,
        ctx: Context,
        noise: Noise,
    ) -> Tensor:
        """See `Kernel.step`; nothing is gathered, and the norms cost nothing."""
        assert noise.offset == 0, "a kernel steps whole parameters"
        norms = torch.zeros(len(weights))
        if not ctx.rows * ctx.cols:
            return norms
        grad_dtype = torch.bfloat16 if grads[0].dtype == torch.bfloat16 else torch.float32
        grads = [grad.to(grad_dtype).contiguous() for grad in grads]
        dense = [values.contiguous() for values in weights]
        rows, cols = self.parts.matrix(ctx)
        block, blocks = self._blocks(rows, cols)
        numbers = noise.numbers.to(torch.int32).contiguous()
        partial = torch.empty((len(dense), blocks, 2, cols) if self.parts.sums else 0)
        squares = torch.empty((len(dense), blocks), dtype=torch.float64)
        job = _Job(
            weights=_addresses(dense),
            grads=_addresses(grads),
            numbers=numbers.data_ptr(),
            partial=partial.data_ptr(),
            squares=squares.data_ptr(),
            norms=norms.data_ptr(),
            rows=rows,
            cols=cols,
            block=block,
            blocks=blocks,
            salts=(ctypes.c_int32 * 3)(*self.parts.salts(noise)),
            **_pointers("momentum", state.get(MOMENTUM, {})),
            **_pointers("square", state.get(SQUARE, {})),
            **asdict(self.parts.numbers(ctx)),
        )
        library = self.library(grad_dtype)
        numel = len(dense) * ctx.rows * ctx.cols
        threads = torch.get_num_threads() if numel > 2 * _BLOCK else 1
        _share(library.step, job, len(dense) * blocks, threads)
        _share(library.finish, job, len(dense), threads)
        for values, stepped in zip(weights, dense, strict=True):
            if stepped is not values:
                values.copy_(stepped)
        return norms

    def library(self, grad_dtype: torch.dtype) -> ctypes.CDLL:
        """The compiled code for gradients of this dtype; built the first time."""
        grad = (Kept.HALF if grad_dtype == torch.bfloat16 else Kept.FULL).name
        return build.load(SOURCE, tuple({**self.parts.names(), "GRAD": grad}.items()))

    def _blocks(self, rows: int, cols: int) -> tuple[int, int]:
        """Elements of a block of one parameter, and how many blocks there are."""
        if not self.parts.sums:
            return _BLOCK, -(-rows * cols // _BLOCK)
        block_rows = max(-(-_BLOCK // cols), -(-rows // _MAX_BLOCKS))
        block_rows += -block_rows % 8  # whole bytes of signs
        return block_rows * cols, -(-rows // block_rows)


def kernel(parts: Parts) -> CpuKernel:
    """Return the kernel for these parts, compiled for gradients of the weights' dtype."""
    found = CpuKernel(parts)
    found.library(torch.bfloat16 if parts.weights is Kept.HALF else torch.float32)
    return found


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _pointers(slot: str, pieces: Pieces) -> dict[str, int]:
    """Fields of the job by the pieces' names: `momentum`, `momentum_row`, `sign` and so on."""
    alone = {"value": slot, "sign": "sign"}
    assert all(piece.is_contiguous() for piece in pieces.values())
    return {alone.get(name, f"{slot}_{name}"): piece.data_ptr() for name, piece in pieces.items()}


def _share(work: Callable[..., None], job: _Job, count: int, threads: int) -> None:
    """Run `work` on ranges of [0, count), one for each thread; ctypes lets go of Python's lock."""
    threads = min(threads, count)
    bounds = [count * index // threads for index in range(threads + 1)]
    arguments = [
        (ctypes.byref(job), ctypes.c_int64(first), ctypes.c_int64(last))
        for first, last in pairwise(bounds)
    ]
    others = [_pool(threads - 1).submit(work, *given) for given in arguments[1:]]
    work(*arguments[0])
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
