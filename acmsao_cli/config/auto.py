"""Settings that stand at `auto`: what they may become, the best first.

Presets leave them open, and the planner decides them for the model and the card; what a recipe or
--set says is never one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from acmsao_cli.config.parts import AUTO
from acmsao_cli.config.recipe import Origin, Recipe, RunConfig

STORAGE: Final = "optimizer.storage"
CHECKPOINTING: Final = "training.gradient_checkpointing"
OFFLOADING: Final = "memory.offload_activations"
BLOCKS: Final = "memory.resident_blocks"
BUDGET: Final = "memory.budget_gib"
ALL_BLOCKS: Final = "all"

# State: nothing lost; half of it; 8 bits; 4 bits and 1 bit beside factored second moments.
OPTIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    STORAGE: ("fp32", "bf16", "int8", "factored_4bit", "factored"),
    CHECKPOINTING: (False, True),
    OFFLOADING: (False, True),
    BLOCKS: (ALL_BLOCKS,),
}


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = recipe
    for name in key.split("."):
        found = getattr(found, name)
    return found


def open_keys(recipe: Recipe) -> tuple[str, ...]:
    """The keys that stand at `auto` for the planner to decide."""
    return tuple(key for key in OPTIONS if value_of(recipe, key) == AUTO)


def with_values(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values by dotted key."""
    values = recipe.model_dump()
    for key, value in settings.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    return type(recipe).model_validate(values)


def changed(config: RunConfig, settings: Mapping[str, Any], origin: Origin) -> RunConfig:
    """The run with other values by dotted key, each from `origin`."""
    origins = config.origins | dict.fromkeys(settings, origin)
    return replace(config, recipe=with_values(config.recipe, settings), origins=origins)


def can_stream(recipe: Recipe) -> bool:
    """Whether blocks may be sent to the host's memory with the settings as they are."""
    stepped = recipe.method.kind != "full" or recipe.optimizer.fused_backward
    return stepped and recipe.model.quantize != "int8"


def at_best(recipe: Recipe) -> Recipe:
    """Every open key at its best value, as if nothing bounded the run."""
    return with_values(recipe, {key: OPTIONS[key][0] for key in open_keys(recipe)})
