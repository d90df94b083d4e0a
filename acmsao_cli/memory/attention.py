"""Attention on the meta device as the devices that train compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from acmsao_cli.optim.tracing import tell_flops


class FlashShape(torch.autograd.Function):
    """Attention as the fused kernels allocate it: the output and one number for each query.

    On the meta device torch takes the plain path, which holds the whole score matrix; no device
    that trains does.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output's shape, (batch, heads, queries, width of a value)."""
        batch, heads, length, _ = query.shape
        width = value.shape[-1]
        output = query.new_empty((batch, length, heads, width)).transpose(1, 2)
        logsumexp = query.new_empty((batch, heads, length), dtype=torch.float32)
        tell_flops(sdpa_flop_count(query.shape, _as_wide(key, heads), _as_wide(value, heads)))
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Gradients of the inputs' shapes; those of grouped keys are summed over their group."""
        query, key, value, output, _ = ctx.saved_tensors
        heads, groups = query.shape[1], key.shape[1]
        wide_shapes = _as_wide(key, heads), _as_wide(value, heads)
        tell_flops(sdpa_backward_flop_count(output.shape, query.shape, *wide_shapes))
        wide = [
            torch.empty_like(one).repeat_interleave(heads // groups, 1)
            if groups != heads
            else torch.empty_like(one)
            for one in (key, value)
        ]
        return torch.empty_like(query), *(
            one.unflatten(1, (groups, -1)).sum(2) if groups != heads else one for one in wide
        )


def _as_wide(grouped: Tensor, heads: int) -> torch.Size:
    """The shape of keys or values with a copy for each query's head."""
    return torch.Size((grouped.shape[0], heads, *grouped.shape[2:]))


def flash_shaped(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand-in for `scaled_dot_product_attention`; grouped keys are read in place."""
    result: Tensor = FlashShape.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def fused_attention_shapes() -> Iterator[None]:
    """Within, attention allocates as fused kernels do."""
    original: Callable[..., Tensor] = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = flash_shaped
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original
