"""The pipeline itself in a kernel's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from acmsao_cli.optim import execution
from acmsao_cli.optim.batches import gather, row_by_row_norm, scatter
from acmsao_cli.optim.in_rows import Gradient
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.pipeline import Pipeline
from acmsao_cli.optim.rules.base import Context
from acmsao_cli.optim.storage.codec import State


@dataclass(frozen=True)
class Composed:
    """Steps any pipeline on any device by its parts, with temporaries for `block` elements."""

    pipeline: Pipeline
    block: int = execution.BLOCK

    def step(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        state: State,
        ctx: Context,
        noise: Noise,
    ) -> Tensor:
        """See `Kernel.step`."""
        return self.step_by(weights, gather(grads, ctx.rows, ctx.cols), state, ctx, noise)

    def step_by(
        self,
        weights: Sequence[Tensor],
        grad: Gradient,
        state: State,
        ctx: Context,
        noise: Noise,
    ) -> Tensor:
        """The same by gradients that are gathered, or computed in rows."""
        gathered = gather(weights, ctx.rows, ctx.cols)
        norms = row_by_row_norm(grad, self.block)
        ctx = replace(ctx, gradient_norm=norms.view(-1, 1, 1))
        execution.advance(self.pipeline, gathered, grad, state, ctx, noise, block=self.block)
        scatter(gathered, weights)
        return norms
