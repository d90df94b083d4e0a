"""`acmsao plan`: what a run will hold at its peak, before anything is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from acmsao_cli.cli.console import print_json, print_table
from acmsao_cli.cli.options import JsonOption, PresetOption, RecipeArgument, SetOption
from acmsao_cli.cli.quiet import quiet_libraries

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.memory.planner import MemoryPlan


def plan(
    recipe: RecipeArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Say what memory RECIPE will take, and what would make it fit."""
    from acmsao_cli.config.layers import Request, resolve

    config = resolve(Request(recipe, preset, tuple(settings or ())))
    quiet_libraries()
    from acmsao_cli.engine.compose import require_composed
    from acmsao_cli.memory import advise, planner

    require_composed(config)
    made = planner.plan(config)
    if json:
        print_json(event(config, made))
    else:
        print_table(list(rows(config, made)))
    advise.require_fit(made, config)


def event(config: RunConfig, made: MemoryPlan) -> dict[str, Any]:
    """The plan for programs, in bytes."""
    from acmsao_cli.memory.advise import bounds

    return {
        "event": "planned",
        "recipe": config.name,
        "preset": config.preset,
        "device": str(made.device),
        "dtype": str(made.dtype).removeprefix("torch."),
        "trained_parameters": made.trained_parameters,
        "by_category": dict(made.by_category),
        "peak_bytes": made.peak_bytes,
        "bounds": [{"bytes": bound, "by": words} for bound, words in bounds(made, config.recipe)],
    }


def rows(config: RunConfig, made: MemoryPlan) -> Iterator[tuple[str, str]]:
    """The plan for people."""
    from acmsao_cli.cli.describe import method_words, model_words, optimizer_words
    from acmsao_cli.engine.report import human_bytes
    from acmsao_cli.memory.advise import bounds

    yield "model", model_words(made)
    yield "method", method_words(config.recipe, made)
    yield "optimizer", optimizer_words(config.recipe)
    for name, size in made.by_category.items():
        yield name, human_bytes(size)
    yield "peak", f"{human_bytes(made.peak_bytes)} of tensors, at the highest moment of a step"
    for bound, words in bounds(made, config.recipe):
        verdict = "fits" if made.peak_bytes <= bound else "does not fit"
        yield "", f"{verdict}: {words} {human_bytes(bound)}"
