"""What a run will hold at its highest point, from its configuration alone.

The planner assembles the same trainee and optimizer as the run, on the meta device, and traces the
engine's own training step: there is no second formula that could drift from the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.config.rules import formats_of
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.engine.step import Core, build_core, trained, training_step
from acmsao_cli.memory.allocator import BLOCK, host_peak_bytes, page_locked_bytes, reserved_bytes
from acmsao_cli.memory.attention import fused_attention_shapes
from acmsao_cli.memory.cards import CONTEXT_BYTES, Card
from acmsao_cli.memory.experts import grouped_products
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Batch, Facts
from acmsao_cli.models.dtypes import DTYPES
from acmsao_cli.optim.accounting import repeats_counted
from acmsao_cli.optim.tracing import (
    FROM_DEVICE,
    HOST,
    TO_DEVICE,
    WEIGHTS,
    WORKSPACE,
    Event,
    StorageTracer,
)

# What is nothing else is an activation, or a temporary of the step.
ACTIVATIONS = "activations"
# What the step's examples were encoded into: latents and text conditions, or tokens.
BATCH = "batch"
CONTEXT = "context"
CATEGORIES = (
    *(WEIGHTS, "gradients", "optimizer", WORKSPACE),
    *(ACTIVATIONS, "loss head", BATCH, CONTEXT),
)


@dataclass(frozen=True)
class StepWork:
    """What a step computes and moves: products' FLOP, and bytes by direction."""

    flops: int
    to_device: int
    from_device: int

    def with_more(self, portion: StepWork, times: int) -> StepWork:
        """The work with so many more portions; fewer if negative."""
        return StepWork(
            self.flops + times * portion.flops,
            self.to_device + times * portion.to_device,
            self.from_device + times * portion.from_device,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak of a training step, by what they are, and what else the run takes.

    `by_category` is the device's; `reserved_bytes` is what the allocator takes of it, with the
    context. `host` is the host's memory beside the program, `disk` what the run leaves there;
    `state_away` is the optimizer's state that waits in the host's memory, `num_blocks` how many
    blocks of the model could.
    """

    by_category: Mapping[str, int]
    reserved_bytes: int
    host: Mapping[str, int]
    disk: Mapping[str, int]
    work: StepWork
    trained_parameters: int
    facts: Facts
    num_blocks: int
    device: torch.device
    dtype: torch.dtype
    card: Card | None = None
    state_away: int = 0
    events: Sequence[Event] = field(default=(), repr=False, compare=False)

    @property
    def peak_bytes(self) -> int:
        """The sum over the categories."""
        return sum(self.by_category.values())

    @property
    def tensor_bytes(self) -> int:
        """The same without the context: what torch says is allocated."""
        return self.peak_bytes - self.by_category[CONTEXT]

    @property
    def needed_bytes(self) -> int:
        """What is held against a bound: all that is taken of the memory that computes."""
        if self.device.type == "cuda":
            return self.reserved_bytes
        return self.peak_bytes + self.host[PAGE_LOCKED]

    def measurable_bytes(self, num_examples: int) -> int:
        """What a run should be seen to hold: allocated on a GPU, resident on a CPU."""
        if self.device.type == "cuda":
            return self.tensor_bytes
        return self.needed_bytes + self.host[AT_REST] + num_examples * self.host[EXAMPLE]


# Entries of `host`: what a GPU copies from and to; parts that only encode or sample; the examples'
# encodings, of one example; and from what a checkpoint is written while the training goes on, where
# there is room for it.
PAGE_LOCKED, AT_REST, EXAMPLE = "page-locked", "parts at rest", "each example"
COPY = "copy to save"


def plan(config: RunConfig, card: Card | None = None) -> MemoryPlan:
    """Trace a step of the run as it is from the second on, when all optimizer state exists.

    With a `card`, as the run would be there, else as it is here.
    """
    recipe = config.recipe
    family = catalog.family(recipe.model.family)
    facts = family.facts(recipe)
    device, dtype = place_of(recipe, card)
    with torch.random.fork_rng(devices=[]):
        trainee = family.open(recipe, torch.device("meta"), dtype)
        core = build_core(recipe, trainee, recipe.training.steps or 1)  # any length needs the same
        core.optimizer.skip_to_full_step()
        with fused_attention_shapes(), grouped_products():
            traced = trace_step(core, meta_batches(core, recipe))
    tracer, on_gpu = traced.tracer, device.type == "cuda"
    context = CONTEXT_BYTES if on_gpu else 0
    allocated = reserved_bytes(tracer.events) if on_gpu else tracer.peak_bytes
    peak = {**tracer.peak, CONTEXT: context}
    offloaded = [piece.nbytes for piece in core.optimizer.offloaded_state()]
    if on_gpu:
        locked = host_peak_bytes(tracer.events) + sum(map(page_locked_bytes, offloaded))
    else:
        locked = tracer.host_peak_bytes + sum(offloaded)
    return MemoryPlan(
        by_category={name: peak.get(name, 0) for name in CATEGORIES},
        reserved_bytes=allocated + context,
        host={
            PAGE_LOCKED: locked,
            AT_REST: sum(map(module_bytes, trainee.at_rest())),
            EXAMPLE: trainee.item_bytes,
            COPY: checkpoint_bytes(core) if recipe.checkpoint.background else 0,
        },
        disk=disk_bytes(recipe, core, facts),
        work=traced.work_of(recipe.training.accumulation),
        trained_parameters=sum(parameter.numel() for parameter in trained(core)),
        facts=facts,
        num_blocks=len(trainee.blocks()),
        device=device,
        dtype=dtype,
        card=card,
        state_away=sum(offloaded),
        events=tracer.events,
    )


def place_of(recipe: Recipe, card: Card | None) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the run, here or on a card."""
    if card is None or recipe.training.device == "cpu":
        device = resolve_device(recipe.training.device)
        return device, resolve_dtype(recipe.model.dtype, device)
    return torch.device("cuda"), DTYPES.get(recipe.model.dtype, torch.bfloat16)


def module_bytes(module: nn.Module) -> int:
    """Of weights and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def checkpoint_bytes(core: Core) -> int:
    """Of one: trained weights, and the optimizer's state."""
    return core.optimizer.state_bytes() + sum(parameter.nbytes for parameter in trained(core))


def disk_bytes(recipe: Recipe, core: Core, facts: Facts) -> dict[str, int]:
    """Checkpoints, with the one that is being written, and the final files."""
    wanted, base = recipe.output.dtype, core.trainee.dtype
    whole = sum(facts.parameters.values()) * DTYPES.get(wanted, base).itemsize
    changed = sum(p.numel() * DTYPES.get(wanted, p.dtype).itemsize for p in trained(core))
    is_full = recipe.method.kind == "full"
    final = sum(whole if is_full or name == "merged" else changed for name in formats_of(recipe))
    kept = recipe.checkpoint.keep + recipe.checkpoint.keep_best
    return {"checkpoints": (kept + 1) * checkpoint_bytes(core), "final files": final}


def meta_batches(core: Core, recipe: Recipe) -> list[Batch]:
    """The largest micro-batches of a step."""
    training = recipe.training
    count = training.planned_portions
    return [core.trainee.meta_batch(training.batch_size) for _ in range(count)]


@dataclass(frozen=True)
class Traced:
    """A step that was followed, and the work of it with that of each further micro-batch."""

    tracer: StorageTracer
    work: StepWork
    portion: StepWork
    num_batches: int

    def work_of(self, num_batches: int) -> StepWork:
        """What a step of so many micro-batches computes and moves: memory needs but two traced."""
        return self.work.with_more(self.portion, num_batches - self.num_batches)


def trace_step(core: Core, batches: Sequence[Batch]) -> Traced:
    """What a training step of `core` held and did, wherever its tensors are."""
    tracer = StorageTracer(BLOCK)
    tracer.category = ACTIVATIONS
    for module in core.trainee.modules().values():
        tracer.claim(module.parameters(), WEIGHTS)
        tracer.claim(module.buffers(), WEIGHTS)
    tracer.claim(core.optimizer.resident_state(), "optimizer")
    if core.stream is not None:
        tracer.claim(core.stream.home(), HOST)
    for batch in batches:
        tracer.claim(batch.inputs.values(), BATCH)
    handles = [
        parameter.register_hook(lambda gradient: tracer.claim([gradient], "gradients"))
        for parameter in trained(core)
    ]
    on_meta = core.trainee.device.type == "meta"
    at_loss: list[StepWork] = []

    def note(what: str, value: torch.Tensor) -> None:
        if what == "loss":
            at_loss.append(work_so_far(tracer))

    briefly = repeats_counted(core.optimizer, tracer) if on_meta else nullcontext()
    try:
        with tracer, briefly:
            training_step(
                core, batches, first_micro_batch=0, lr_factor=1.0, previous_norm=1.0, guard=note
            )
    finally:
        for handle in handles:
            handle.remove()
    # From one loss to the next: backward of one micro-batch and forward of the next.
    portion = at_loss[1].with_more(at_loss[0], -1) if len(batches) > 1 else StepWork(0, 0, 0)
    return Traced(tracer, work_so_far(tracer), portion, len(batches))


def work_so_far(tracer: StorageTracer) -> StepWork:
    """What was computed and moved since the tracer began."""
    return StepWork(tracer.flops, tracer.crossed[TO_DEVICE], tracer.crossed[FROM_DEVICE])
