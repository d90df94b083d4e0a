"""Products of experts on the meta device, where torch knows them in bf16 alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def grouped_products() -> Iterator[None]:
    """Within, `grouped_mm` on the meta device allocates what it gives, in any dtype."""
    original: Any = nn.functional.grouped_mm

    def grouped_mm(input: Tensor, weight: Tensor, **more: Any) -> Tensor:
        if not input.is_meta:
            found: Tensor = original(input, weight, **more)
            return found
        product: Tensor = _GroupedProduct.apply(input, weight)  # type: ignore[no-untyped-call]
        return product

    replaced: Any = nn.functional
    replaced.grouped_mm = grouped_mm
    try:
        yield
    finally:
        replaced.grouped_mm = original


class _GroupedProduct(torch.autograd.Function):
    """Rows (n, in) by the weights (experts, in, out) of their groups: (n, out)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        of_input, of_weight = ctx.needs_input_grad
        ctx.like_input, ctx.like_weight = input.new_empty(0), weight.new_empty(0)
        ctx.shapes = input.shape, weight.shape
        # Each is kept for the gradient of the other.
        ctx.save_for_backward(input if of_weight else None, weight if of_input else None)
        return input.new_empty(input.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        of_input, of_weight = ctx.needs_input_grad
        return (
            ctx.like_input.new_empty(ctx.shapes[0]) if of_input else None,
            ctx.like_weight.new_empty(ctx.shapes[1]) if of_weight else None,
        )
