"""One optimizer step, the same code for a run and for the planner's trace on the meta device.

Nothing here waits for the device or asks for a tensor's value; what must (is the loss finite?) is
passed in as `guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.config.sections import TrainingSection
from acmsao_cli.data.randomness import derive_seed
from acmsao_cli.engine.activations import ActivationsAtHome
from acmsao_cli.engine.backward import (
    CLIP_EPS,
    BackwardHook,
    clip,
    gradient_norm,
    norm_of_backward,
)
from acmsao_cli.engine.compose import layers_of, pipeline_of
from acmsao_cli.engine.out_of_memory import Whole
from acmsao_cli.engine.streaming import BlockStream, stream_blocks
from acmsao_cli.errors import ConfigError
from acmsao_cli.models.base import Batch, Trainee
from acmsao_cli.optim import ComposedOptimizer, Pipeline
from acmsao_cli.optim.in_rows import GradientInRows
from acmsao_cli.optim.storage.policy import in_host_memory


@dataclass(frozen=True)
class Core:
    """A model with its method and its optimizer, and how it is stepped: what a step acts on."""

    trainee: Trainee
    optimizer: ComposedOptimizer
    training: TrainingSection
    fused: bool = False
    hook: BackwardHook = field(default_factory=BackwardHook)
    stream: BlockStream | None = None
    activations: ActivationsAtHome | None = None
    whole: Whole = field(default_factory=Whole)

    def at_home(self) -> AbstractContextManager[None]:
        """Within, every weight can be read and written, wherever it computes."""
        return nullcontext() if self.stream is None else self.stream.at_home()

    def keeping(self) -> AbstractContextManager[Any]:
        """Around forward: where what backward needs is kept."""
        return nullcontext() if self.activations is None else self.activations.keeping()

    def going_back(self) -> AbstractContextManager[None]:
        """Around backward."""
        return nullcontext() if self.stream is None else self.stream.going_back()

    def step_parameter(self, parameter: Tensor, gradient: GradientInRows | None = None) -> None:
        """Advance one weight now, by its own gradient or by this one."""
        self.whole.now = False
        self.optimizer.step_parameter(parameter, gradient)
        if self.stream is not None:
            self.stream.note_step(parameter)

    def step(self) -> None:
        """Advance every weight that has a gradient and was not advanced in backward."""
        self.whole.now = False
        if self.stream is not None:
            for parameter in trained(self):
                if parameter.grad is not None:
                    with self.stream.present(parameter):
                        self.step_parameter(parameter)
                    parameter.grad = None
            self.stream.settle()
        self.optimizer.step()


@dataclass(frozen=True)
class StepResult:
    """Mean loss over the step's units and global gradient norm before clipping: 0-d tensors.

    `first_norm` is that of what the first micro-batch added to the gradients, where the noise scale
    is measured.
    """

    loss: Tensor
    gradient_norm: Tensor | None
    first_norm: Tensor | None = None


class NotFiniteError(Exception):
    """A loss or gradient norm is not finite: `what`. No weight has been touched by the step."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


Guard = Callable[[str, Tensor], None]


def unguarded(what: str, value: Tensor) -> None:
    """The guard of a step whose numbers do not exist."""


def build_optimizer(
    recipe: Recipe, trainee: Trainee, total_steps: int | None = None
) -> ComposedOptimizer:
    """The recipe's pipeline over the trainee's weights; state lives where blocks do."""
    home = recipe.method.kind == "full" and isinstance(recipe.memory.resident_blocks, int)

    def kept(pipeline: Pipeline) -> Pipeline:
        return replace(pipeline, storage=in_host_memory(pipeline.storage)) if home else pipeline

    wanted = recipe.optimizer
    groups = [
        {"params": list(group.parameters), "lr": group.lr or wanted.lr}
        for group in trainee.parameter_groups()
    ]
    optimizer = ComposedOptimizer(
        groups,
        kept(pipeline_of(wanted)),
        lr=wanted.lr,
        weight_decay=wanted.weight_decay,
        seed=recipe.training.seed,
        layers=[replace(rule, pipeline=kept(rule.pipeline)) for rule in layers_of(wanted)],
        use_kernels=wanted.kernels,
        total_steps=total_steps,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def build_core(recipe: Recipe, trainee: Trainee, total_steps: int | None = None) -> Core:
    """The trainee with its optimizer, stepping during backward if the recipe says so."""
    stream = streamed(recipe, trainee)
    core = Core(
        trainee,
        build_optimizer(recipe, trainee, total_steps),
        recipe.training,
        recipe.optimizer.fused_backward,
        stream=stream,
        activations=activations_away(recipe, trainee),
    )
    if core.fused:
        core.hook.attach(trained(core))
    return core


def streamed(recipe: Recipe, trainee: Trainee) -> BlockStream | None:
    """The blocks that `memory.resident_blocks` sends home, all else on the trainee's device."""
    resident = recipe.memory.resident_blocks
    if not isinstance(resident, int):
        return None
    blocks = trainee.blocks()
    if not blocks:
        raise ConfigError(
            "`memory.resident_blocks` is set, but this model has no list of blocks",
            hint="leave it out: the whole model stays on the device",
        )
    if resident > len(blocks):
        raise ConfigError(
            f"`memory.resident_blocks` is {resident}, but this model has {len(blocks)} blocks",
            hint="all keeps every one of them on the device",
        )
    modules = trainee.modules().values()
    frozen_only = recipe.method.kind != "full"
    return stream_blocks(modules, blocks, resident, trainee.device, frozen_only=frozen_only)


def activations_away(recipe: Recipe, trainee: Trainee) -> ActivationsAtHome | None:
    """What sends activations home, if the recipe says so."""
    if not recipe.memory.offload_activations:
        return None
    weights = [w for m in trainee.modules().values() for w in (*m.parameters(), *m.buffers())]
    return ActivationsAtHome(weights, trainee.device)


def training_step(
    core: Core,
    batches: Sequence[Batch],
    *,
    first_micro_batch: int,
    lr_factor: float,
    previous_norm: float | None = None,
    guard: Guard = unguarded,
) -> StepResult:
    """Advance the weights by one step over `batches`, its micro-batches.

    Each micro-batch's loss is divided by the weight of the whole step, so a step in portions is the
    step of the whole: a token counts the same in whichever portion it lies. `previous_norm` is the
    gradient norm of the step before, which delayed clipping goes by. `guard` sees each loss before
    its backward, and the gradient norm before the weights are stepped (unless it is only known when
    they are); it may raise, and then no weight has been touched by this step.
    """
    set_lr(core.optimizer, lr_factor)
    total_weight = sum(batch.weight for batch in batches)

    def backward(index: int) -> Tensor:
        # Dropout draws from torch's global generator: seeded here, it is a function of the position
        # in the run and needs no saved state, and a second pass sees the same.
        seed = derive_seed(core.training.seed, "dropout", first_micro_batch + index)
        torch.manual_seed(seed)
        with core.keeping():
            loss = core.trainee.loss(batches[index]) / total_weight
        guard("loss", loss.detach())
        with core.going_back():
            loss.backward()
        return loss.detach()

    *earlier, last = range(len(batches))
    losses, first_norm = [], None
    for index in earlier:
        losses.append(backward(index))
        if index == 0 and measures_noise(core.training):
            first_norm = gradient_norm(trained(core))
    step = step_during_backward if core.fused else step_after_backward
    loss, norm = step(core, partial(backward, last), previous_norm, guard)
    core.optimizer.zero_grad(set_to_none=True)
    return StepResult(torch.stack([*losses, loss]).sum(), norm, first_norm)


def step_after_backward(
    core: Core, backward: Callable[[], Tensor], previous_norm: float | None, guard: Guard
) -> tuple[Tensor, Tensor | None]:
    """Gather all gradients, clip them together, step. Returns the last loss, and the norm."""
    loss = backward()
    norm = gradient_norm(trained(core))
    if norm is not None:
        guard("gradient norm", norm)
    clip(trained(core), core.training.clip_norm, norm)
    core.step()
    return loss, norm


def step_during_backward(
    core: Core, backward: Callable[[], Tensor], previous_norm: float | None, guard: Guard
) -> tuple[Tensor, Tensor | None]:
    """Step each weight when its gradient is complete, clipped by a norm that is known by then.

    Two passes: a first backward measures the norm and keeps no gradient. Delayed: the norm of the
    step before; the first step, which has none, is not clipped.
    """
    norm, clipped_by = None, None
    if core.training.clip == "two_pass":
        norm = clipped_by = norm_of_backward(core.hook, trained(core), backward)
        if norm is not None:
            guard("gradient norm", norm)
    elif core.training.clip == "delayed" and previous_norm is not None:
        clipped_by = torch.full((), previous_norm, device=core.trainee.device)

    def step_and_free(parameter: Tensor) -> None:
        clip([parameter], core.training.clip_norm, clipped_by)
        core.step_parameter(parameter)
        parameter.grad = None

    with core.hook.doing(step_and_free):
        loss = backward()
    for parameter, gradient in core.trainee.gradients_in_rows():
        core.step_parameter(parameter, gradient)
    clip(trained(core), core.training.clip_norm, clipped_by)  # what the last backward left out
    core.step()
    return loss, norm if norm is not None else unclipped_norm(core, previous_norm)


def unclipped_norm(core: Core, clipped_by: float | None) -> Tensor | None:
    """The norm of the gradients that were stepped, as it was before they were clipped."""
    norm, training = core.optimizer.gradient_norm(), core.training
    if norm is None or training.clip != "delayed" or not training.clip_norm or clipped_by is None:
        return norm
    return norm * max(1.0, (clipped_by + CLIP_EPS) / training.clip_norm)


def let_go_of_step(core: Core) -> None:
    """Forget the gradients of a step that is left out, lest they be taken for the next one's."""
    core.optimizer.zero_grad(set_to_none=True)
    core.trainee.gradients_in_rows()


def measures_noise(training: TrainingSection) -> bool:
    """Whether the gradient noise scale is wanted, to be told or to be followed."""
    return training.noise_scale or training.adaptive_batch is not None


def set_lr(optimizer: ComposedOptimizer, factor: float) -> None:
    """Every group's rate becomes its peak rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def trained(core: Core) -> list[nn.Parameter]:
    """The weights that are stepped."""
    return [p for group in core.optimizer.param_groups for p in group["params"]]
