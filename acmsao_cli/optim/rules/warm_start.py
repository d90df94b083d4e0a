"""A few steps of plain gradient descent before an adaptive rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import part_name
from acmsao_cli.optim.rules.adam import AdamW
from acmsao_cli.optim.rules.base import Cells, Context, Rule, rule
from acmsao_cli.optim.schedules import Course, Scalar, check_not_negative, value_at
from acmsao_cli.optim.slots import Slot

if TYPE_CHECKING:
    from acmsao_cli.optim.pipeline import Pipeline


@rule("warm_start")
@dataclass(frozen=True)
class WarmStart(Rule):
    """Steps of plain gradient descent, in which the inner rule's state fills; then the inner rule.

    u = scale g for the first `steps` steps. An adaptive rule's first steps rest on the second
    moment of very few gradients; the alternative to correcting them is not to take them.
    """

    inner: Rule = field(default_factory=AdamW)
    steps: int = 100
    scale: Course = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise OptimizerError(
                f"a warm start cannot take {self.steps} steps", hint="typical: 100; 0 is none"
            )
        check_not_negative("scale", self.scale, "typical: 1")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The inner rule's."""
        return self.inner.slots

    @property
    def whole(self) -> bool:
        """As the inner rule."""
        return self.inner.whole

    @property
    def contributions(self) -> tuple[str, ...]:
        """The inner rule's."""
        return self.inner.contributions

    def shared(self) -> dict[str, float]:
        """The inner rule's."""
        return self.inner.shared()

    def finish(self, shared: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        """Let the inner rule finish."""
        self.inner.finish(shared, totals)

    def rejects(self, pipeline: Pipeline) -> str | None:
        """Refuse what the inner rule refuses."""
        reason = self.inner.rejects(pipeline)
        return None if reason is None else f"around {part_name(self.inner)}, which {reason}"

    def rate(self, ctx: Context) -> Scalar:
        """Return the inner rule's rate once its updates are taken."""
        rate = self.inner.rate(ctx)
        if isinstance(ctx.step, Tensor):
            return torch.where(ctx.step > self.steps, rate, 1.0)
        return rate if ctx.step > self.steps else 1.0

    def update(self, grad: Tensor, cells: Cells, ctx: Context) -> Tensor:
        """Advance the inner rule; return its update, or at first the scaled gradient."""
        update = self.inner.update(grad, cells, ctx)
        if isinstance(ctx.step, Tensor):
            return torch.where(ctx.step > self.steps, update, self._plain(grad, ctx))
        return update if ctx.step > self.steps else self._plain(grad, ctx)

    def _plain(self, grad: Tensor, ctx: Context) -> Tensor:
        return grad * (value_at(self.scale, ctx.step) / ctx.grad_scale)
