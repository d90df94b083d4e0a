"""One optimizer step, the same code for a run and for the planner's trace on the meta device.

Nothing here waits for the device or asks for a tensor's value; what must (is the loss finite?) is
passed in as `guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.data.randomness import derive_seed
from acmsao_cli.models.base import Batch, Trainee
from acmsao_cli.optim import ComposedOptimizer, build_pipeline


@dataclass
class Gate:
    """Whether weights may be stepped during the current backward: only in a step's last one."""

    is_open: bool = True


@dataclass(frozen=True)
class Core:
    """A model with its method and its optimizer: what a step acts on."""

    trainee: Trainee
    optimizer: ComposedOptimizer
    clip_norm: float | None
    seed: int
    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class StepResult:
    """Mean loss over the step's units and global gradient norm before clipping: 0-d tensors."""

    loss: Tensor
    gradient_norm: Tensor | None


Guard = Callable[[str, Tensor], None]


def unguarded(what: str, value: Tensor) -> None:
    """The guard of a step whose numbers do not exist."""


def build_optimizer(recipe: Recipe, trainee: Trainee) -> ComposedOptimizer:
    """The recipe's pipeline over the trainee's weights."""
    wanted = recipe.optimizer
    not_parts = {"lr", "weight_decay", "fused_backward"}
    parts: dict[str, Any] = wanted.model_dump(exclude=not_parts, exclude_none=True)
    pipeline = build_pipeline(**parts)
    groups = [
        {"params": list(group.parameters), "lr": group.lr or wanted.lr}
        for group in trainee.parameter_groups()
    ]
    optimizer = ComposedOptimizer(
        groups,
        pipeline,
        lr=wanted.lr,
        weight_decay=wanted.weight_decay,
        seed=recipe.training.seed,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def build_core(recipe: Recipe, trainee: Trainee) -> Core:
    """The trainee with its optimizer, stepping during backward if the recipe says so."""
    core = Core(
        trainee,
        build_optimizer(recipe, trainee),
        recipe.training.clip_norm,
        recipe.training.seed,
    )
    if recipe.optimizer.fused_backward:
        core.optimizer.attach_to_backward(lambda: core.gate.is_open)
    return core


def training_step(
    core: Core,
    batches: Sequence[Batch],
    *,
    first_micro_batch: int,
    lr_factor: float,
    guard: Guard = unguarded,
) -> StepResult:
    """Advance the weights by one step over `batches`, its micro-batches.

    Each micro-batch's loss is divided by the weight of the whole step, so a step in portions is the
    step of the whole: a token counts the same in whichever portion it lies. `guard` sees each loss
    before its backward, and the gradient norm before the weights are stepped (unless they are
    stepped during backward); it may raise, and then no weight has been touched by this step.
    """
    set_lr(core.optimizer, lr_factor)
    total_weight = sum(batch.weight for batch in batches)
    losses = []
    for index, batch in enumerate(batches):
        core.gate.is_open = index == len(batches) - 1
        # Dropout draws from torch's global generator: seeded here, it is a function of the position
        # in the run and needs no saved state.
        torch.manual_seed(derive_seed(core.seed, "dropout", first_micro_batch + index))
        loss = core.trainee.loss(batch) / total_weight
        guard("loss", loss.detach())
        loss.backward()
        losses.append(loss.detach())
    norm = gradient_norm(core)
    if norm is not None:
        guard("gradient norm", norm)
        clip_gradients(core, norm)
    core.optimizer.step()
    core.optimizer.zero_grad(set_to_none=True)
    if norm is None:
        norm = core.optimizer.gradient_norm()
    return StepResult(torch.stack(losses).sum(), norm)


def set_lr(optimizer: ComposedOptimizer, factor: float) -> None:
    """Every group's rate becomes its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def trained(core: Core) -> list[nn.Parameter]:
    """The weights that are stepped."""
    return [p for group in core.optimizer.param_groups for p in group["params"]]


def gradient_norm(core: Core) -> Tensor | None:
    """Norm of all gradients in fp32, 0-d, whatever their dtype; None where none are left."""
    gradients = [p.grad for p in trained(core) if p.grad is not None]
    if not gradients:
        return None
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def clip_gradients(core: Core, norm: Tensor) -> None:
    """Scale all gradients so that their global norm is at most `clip_norm`."""
    if core.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained(core), core.clip_norm, norm)
