"""What a run will hold at its highest point, from its configuration alone.

The planner assembles the same trainee and optimizer as the run, on the meta device, and traces the
engine's own training step: there is no second formula that could drift from the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from acmsao_cli.config.recipe import Recipe, RunConfig
from acmsao_cli.engine.precision import resolve_device, resolve_dtype
from acmsao_cli.engine.step import Core, build_core, trained, training_step
from acmsao_cli.memory.attention import fused_attention_shapes
from acmsao_cli.models import catalog
from acmsao_cli.models.base import Batch, Facts
from acmsao_cli.optim.accounting import repeats_counted
from acmsao_cli.optim.tracing import HOST, WEIGHTS, WORKSPACE, StorageTracer

# What is nothing else is an activation, or a temporary of the step.
ACTIVATIONS = "activations"
# What the step's examples were encoded into: latents and text conditions, or tokens.
BATCH = "batch"
CATEGORIES = (
    *(WEIGHTS, "gradients", "optimizer", WORKSPACE),
    *(ACTIVATIONS, "loss head", BATCH),
)

# The caching allocator of CUDA hands out multiples of this many bytes.
BLOCK = 512


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of tensors at the peak of a training step, by what they are; and what is trained.

    Not in it: the program itself, the CUDA context, the allocator's slack.
    """

    by_category: Mapping[str, int]
    trained_parameters: int
    facts: Facts
    device: torch.device
    dtype: torch.dtype

    @property
    def peak_bytes(self) -> int:
        """The sum over the categories."""
        return sum(self.by_category.values())


def plan(config: RunConfig) -> MemoryPlan:
    """Trace a step of the run as it is from the second on, when all optimizer state exists."""
    recipe = config.recipe
    family = catalog.family(recipe.model.family)
    facts = family.facts(recipe)
    device = resolve_device(recipe.training.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    with torch.random.fork_rng(devices=[]):
        trainee = family.open(recipe, torch.device("meta"), dtype)
        core = build_core(recipe, trainee, recipe.training.steps or 1)  # any length needs the same
        core.optimizer.skip_to_full_step()
        with fused_attention_shapes():
            peak = trace_step(core, meta_batches(core, recipe))
    num_trained = sum(parameter.numel() for parameter in trained(core))
    return MemoryPlan(
        {name: peak.get(name, 0) for name in CATEGORIES}, num_trained, facts, device, dtype
    )


def meta_batches(core: Core, recipe: Recipe) -> list[Batch]:
    """The largest micro-batches of a step.

    The second meets the gradients of the first; a third would change nothing.
    """
    training = recipe.training
    grows = training.batch_schedule or training.adaptive_batch is not None
    portions = 2 if grows else min(training.accumulation, 2)
    return [core.trainee.meta_batch(training.batch_size) for _ in range(portions)]


def trace_step(core: Core, batches: Sequence[Batch]) -> Mapping[str, int]:
    """Bytes by category at the peak of a training step of `core`, wherever its tensors are."""
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
    briefly = repeats_counted(core.optimizer, tracer) if on_meta else nullcontext()
    try:
        with tracer, briefly:
            training_step(core, batches, first_micro_batch=0, lr_factor=1.0, previous_norm=1.0)
    finally:
        for handle in handles:
            handle.remove()
    return dict(tracer.peak)
