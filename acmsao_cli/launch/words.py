"""What a run is about to do, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from acmsao_cli.config.parts import called
from acmsao_cli.engine.events import Started
from acmsao_cli.engine.report import human_bytes, human_count, joined

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import Recipe
    from acmsao_cli.engine.folder import Place
    from acmsao_cli.memory.choose import Decided
    from acmsao_cli.memory.planner import MemoryPlan


def describe_start(decided: Decided, place: Place, num_examples: int) -> Started:
    """The run as the user should recognise it before the first weight is loaded."""
    config, made = decided.config, decided.plan
    recipe = config.recipe
    facts = {
        "model": model_words(made),
        "method": method_words(recipe, made),
        "optimizer": optimizer_words(recipe),
        "data": f"{num_examples} examples from {recipe.data.source}",
        "training": training_words(recipe),
        "memory": memory_words(made, num_examples),
        "output": str(place.folder.path),
    }
    if config.preset:
        facts["preset"] = config.preset
    if decided.settings:
        facts["decided"] = decided_words(decided)
    return Started(
        name=config.name,
        folder=place.folder.path,
        facts=facts,
        predicted_bytes=made.measurable_bytes(num_examples),
        resumed_from=place.step,
    )


def model_words(made: MemoryPlan) -> str:
    """Source, family, size, dtype and device."""
    sizes = joined(f"{name} {human_count(n)}" for name, n in made.facts.parameters.items())
    details = joined(f"{key} {value}" for key, value in made.facts.details.items())
    dtype = str(made.dtype).removeprefix("torch.")
    parts = (made.facts.family, sizes, details, f"{dtype} on {made.device}")
    return f"{made.facts.source} ({joined(parts)})"


def method_words(recipe: Recipe, made: MemoryPlan) -> str:
    """What is trained, and how much of it."""
    trained = f"{human_count(made.trained_parameters)} parameters trained"
    method = recipe.method
    if method.kind == "full":
        return f"full weights, {trained}"
    targets = method.targets if isinstance(method.targets, str) else joined(method.targets)
    kind = "DoRA" if method.dora else "LoRA"
    return f"{kind} rank {method.rank} on {targets}, {trained}"


def optimizer_words(recipe: Recipe) -> str:
    """Rule, state, rate and course."""
    wanted = recipe.optimizer
    edits = (*wanted.gradient_edits, *wanted.direction_edits)
    return joined(
        (
            called(wanted.name, wanted.options) if wanted.options else wanted.name,
            f"{wanted.momentum} momentum" if wanted.momentum else "",
            f"{wanted.ratio} ratio" if wanted.ratio else "",
            f"{wanted.storage} state",
            joined(str(edit) for edit in edits),
            f"{wanted.decay} decay" if wanted.decay != "decoupled" else "",
            f"{len(wanted.layers)} layer patterns" if wanted.layers else "",
            "with kernels" if wanted.kernels else "",
            "stepped during backward" if wanted.fused_backward else "",
            f"learning rate {wanted.lr:g}",
            recipe.schedule.kind,
        )
    )


def training_words(recipe: Recipe) -> str:
    """How long and in which portions."""
    training = recipe.training
    length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
    portions = f"batch {training.batch_size}"
    if training.accumulation > 1:
        portions += f" x {training.accumulation}"
    checkpointing = "gradient checkpointing" if training.gradient_checkpointing else ""
    return joined((length, portions, checkpointing, f"seed {training.seed}"))


def memory_words(made: MemoryPlan, num_examples: int) -> str:
    """The predicted peak and its parts: on a CPU with all that the same memory holds."""
    if made.device.type != "cuda":
        total = made.measurable_bytes(num_examples)
        sizes = {**made.by_category, "kept beside the step": total - made.peak_bytes}
        return f"{human_bytes(total)} predicted ({sizes_words(sizes)})"
    there = f"{human_bytes(made.peak_bytes)} predicted ({sizes_words(made.by_category)})"
    away = made.host["page-locked"]
    return f"{there}, and {human_bytes(away)} page-locked in the host's memory" if away else there


def decided_words(decided: Decided) -> str:
    """What open settings became, and why."""
    from acmsao_cli.memory.choose import words_of

    return f"{words_of(decided.settings)}: {decided.why}"


def sizes_words(sizes: Mapping[str, int]) -> str:
    """Names and sizes, those that are something."""
    return joined(f"{name} {human_bytes(size)}" for name, size in sizes.items() if size)
