"""Next-token cross-entropy, summed, in fp32, without a full fp32 copy of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acmsao_cli.optim.tracing import counted_as

IGNORED = -100
LOSS_HEAD = "loss head"

# Entries of the largest fp32 temporary: 64 MiB.
SLICE_ENTRIES = 2**24


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[target] over targets that are not IGNORED, a 0-d fp32 tensor.

    `logits` (..., vocabulary) in any float dtype, `targets` (...) int64. The log-sum-exp is
    taken in fp32, a slice of rows at a time; the gradient comes back in the dtype of the logits.
    """
    return cross_entropy_and_log_sums(logits, targets)[0]


def cross_entropy_and_log_sums(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the log-sum-exp of each row in fp32, through which no gradient flows."""
    flat = logits.reshape(-1, logits.shape[-1])
    found: tuple[Tensor, Tensor] = _SummedCrossEntropy.apply(flat, targets.reshape(-1))  # type: ignore[no-untyped-call]
    return found


def _slices(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, SLICE_ENTRIES // vocabulary)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class _SummedCrossEntropy(torch.autograd.Function):
    """Keeps the logits and one fp32 number per row; backward computes the softmax again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        kept = targets != IGNORED
        index = targets.clamp(min=0)[:, None]
        log_sum = logits.new_empty(logits.shape[0], dtype=torch.float32)
        for part in _slices(*logits.shape):
            torch.logsumexp(logits[part].float(), dim=1, out=log_sum[part])
        losses = (log_sum - logits.gather(1, index)[:, 0].float()) * kept
        ctx.save_for_backward(logits, index, kept, log_sum)
        ctx.mark_non_differentiable(log_sum)
        return losses.sum(), log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """d loss / d logits = (softmax - one-hot) on kept rows, 0 on the others."""
        logits, index, kept, log_sum = ctx.saved_tensors
        with counted_as(LOSS_HEAD):
            grad = torch.empty_like(logits)
        scale = (grads[0] * kept)[:, None]
        minus_one = torch.full_like(index, -1, dtype=torch.float32)
        for part in _slices(*logits.shape):
            slope = logits[part].float().sub_(log_sum[part, None]).exp_()
            slope.scatter_add_(1, index[part], minus_one[part]).mul_(scale[part])
            grad[part] = slope
        return grad, None
