"""`acmsao validate`: is a recipe right, before anything is loaded?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from acmsao_cli.cli.console import print_json, print_table, safe
from acmsao_cli.cli.options import JsonOption, PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import Recipe


def validate(
    recipe: RecipeArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Check a recipe without loading anything."""
    from acmsao_cli.config.layers import Request, resolve

    config = resolve(Request(recipe, preset, tuple(settings or ())))
    if not config.recipe.optimizer.is_plain:  # composing takes seconds, for it loads torch
        quiet_libraries()
        from acmsao_cli.engine.compose import require_composed

        require_composed(config, trained_here=False)
    if json:
        origins = {path: str(origin) for path, origin in config.origins.items()}
        print_json(
            {
                "event": "valid",
                "recipe": config.name,
                "values": config.as_dict(),
                "origins": origins,
            }
        )
        return
    under = f" under preset {config.preset}" if config.preset else ""
    print(safe(f"{recipe} is valid{under}"))
    print_table([(f"  {key}", value) for key, value in summary(config.recipe)])


def summary(recipe: Recipe) -> list[tuple[str, str]]:
    """Return what decides a run, in a few words each."""
    from acmsao_cli.config.sections import Lora

    optimizer, training = recipe.optimizer, recipe.training
    method = f"lora of rank {recipe.method.rank}" if isinstance(recipe.method, Lora) else "full"
    length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
    batch = training.batch_size * training.accumulation
    budget = recipe.memory.budget_gib
    return [
        ("model", f"{recipe.model.source} ({recipe.model.family}, {recipe.model.dtype})"),
        ("method", method),
        ("data", recipe.data.source),
        ("optimizer", f"{optimizer.name}, state in {optimizer.storage}, lr {optimizer.lr:g}"),
        ("training", f"{length}, {batch} examples each, schedule {recipe.schedule.kind}"),
        ("memory", f"at most {budget:g} GB" if budget else "no bound"),
    ]
