"""An optimizer as a value: five stations over (batch, rows, cols), always in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim import registry
from acmsao_cli.optim.decay import L2
from acmsao_cli.optim.edits.base import DirectionEdit, GradientEdit
from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.rules.base import Cells, Context, Rule
from acmsao_cli.optim.schedules import Scalar
from acmsao_cli.optim.slots import Slot
from acmsao_cli.optim.storage.codec import Cell, State
from acmsao_cli.optim.storage.policy import Storage, build_storage
from acmsao_cli.optim.write import Write

WEIGHT_STREAM = 0  # the noise stream of the weights; the state's cells have the following ones


@dataclass(frozen=True)
class Pipeline:
    """gradient edits -> rule -> direction edits -> decay -> write."""

    rule: Rule
    storage: Storage = field(default_factory=lambda: build_storage("fp32", ()))
    gradient: tuple[GradientEdit, ...] = ()
    direction: tuple[DirectionEdit, ...] = ()
    write: Write = field(default_factory=Write)

    def __post_init__(self) -> None:
        reason = self.rule.rejects(self)
        if reason is not None:
            raise OptimizerError(f"{registry.part_name(self.rule)} {reason}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything remembered for each parameter."""
        return (*self.rule.slots, *self.write.slots)

    @property
    def whole(self) -> bool:
        """Whether a parameter cannot be stepped in blocks of rows."""
        return self.rule.whole or any(self.storage.codec(slot).whole for slot in self.slots)

    def cells(self) -> Iterator[tuple[str, Slot]]:
        """Yield every cell's name with its slot, in the order of their noise streams."""
        for slot in self.slots:
            for name in slot.cells:
                yield name, slot

    def allocate(self, batch: int, rows: int, cols: int, device: torch.device) -> State:
        """Return the state of `batch` parameters of (rows, cols) that were never stepped."""
        return {
            name: self.storage.codec(slot).allocate(slot.shape(batch, rows, cols), device)
            for name, slot in self.cells()
        }

    def step(self, weights: Tensor, grad: Tensor, state: State, ctx: Context, noise: Noise) -> None:
        """Advance `weights` (batch, rows, cols; fp32 or bf16) and `state` in place by one gradient.

        The gradient is left as it is; `ctx.weights` is replaced by the dense fp32 weights.
        """
        cells = self.open(state, noise)
        ctx = ctx if ctx.noise is not None else replace(ctx, noise=noise)
        dense, ctx, update = self.direct(weights, grad, cells, ctx)
        self.complete(weights, dense, update, cells, ctx, noise)

    def open(self, state: State, noise: Noise) -> dict[str, Cell]:
        """Cells in the order of their streams; rulers exist before what they measure."""
        numbered = list(enumerate(self.cells(), start=WEIGHT_STREAM + 1))
        opened: dict[str, Cell] = {}
        for stream, (name, slot) in sorted(
            numbered, key=lambda entry: entry[1][1].unit is not None
        ):
            ruler = None if slot.unit is None else opened[slot.unit]
            codec = self.storage.codec(slot)
            opened[name] = Cell(codec, state[name], noise.stream(stream), ruler)
        return opened

    def direct(
        self, weights: Tensor, grad: Tensor, cells: Cells, ctx: Context
    ) -> tuple[Tensor, Context, Tensor]:
        """Advance the cells; return the dense weights, the circumstances of writing, the update."""
        dense = self.write.dense(weights, cells)
        ctx = replace(ctx, weights=dense)
        grad = -grad.float() if ctx.maximize else grad.float()
        for edit in self.gradient:
            grad = edit(grad, ctx)
        if ctx.weight_decay:
            grad = self.write.decay.gradient(grad, ctx)
        if self.rule.guarded:
            same = not self.gradient and not isinstance(self.write.decay, L2)
            grad, ctx = guard(grad, ctx if same else replace(ctx, gradient_norm=None))
        update = self.rule.update(grad, cells, ctx)
        for change in self.direction:
            update = change(update, grad, ctx)
        return dense, replace(ctx, lr=ctx.lr * self.rule.rate(ctx)), update

    def complete(
        self,
        weights: Tensor,
        dense: Tensor,
        update: Tensor,
        cells: dict[str, Cell],
        ctx: Context,
        noise: Noise,
    ) -> None:
        """Store the cells and the weights."""
        for cell in cells.values():
            cell.close()
        self.write(weights, dense, update, cells, ctx, noise.stream(WEIGHT_STREAM))

    def stations(self) -> str:
        """Stable text of the five stations, with every option."""
        edits = [registry.signature(edit) for edit in (*self.gradient, self.rule, *self.direction)]
        return " -> ".join([*edits, registry.signature(self.write)])

    def signature(self) -> str:
        """Stable text of the whole composition: the stations, and where state lives."""
        names = ", ".join(f"{slot}={name}" for slot, name in self.storage.names().items())
        return f"{self.stations()} | storage({names})"

    def __str__(self) -> str:
        """Return the signature."""
        return self.signature()


def guard(grad: Tensor, ctx: Context) -> tuple[Tensor, Context]:
    """Give zeros, and the rate 0, for each parameter whose gradient is not finite.

    Neither is one whose squares fp32 cannot add up: a second moment could not hold them.
    """
    norm = ctx.norm(grad) if ctx.gradient_norm is None else ctx.gradient_norm
    news = ctx.once("guard", lambda: _fitness(norm, ctx.lr))
    # Multiplied and mended, which is faster than a mask.
    safe = (grad * news["fit"]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return safe, replace(ctx, **news)


def _fitness(norm: Tensor, lr: Scalar) -> dict[str, Any]:
    """What of the context follows from the norm."""
    fit = (norm * norm < torch.inf).to(norm.dtype)
    norm = norm.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return {"lr": fit * lr, "gradient_norm": norm, "fit": fit}
