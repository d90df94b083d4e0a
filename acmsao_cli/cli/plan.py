"""`acmsao plan`: what a run will hold at its peak, before anything is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acmsao_cli.cli.console import print_json, print_table, print_text
from acmsao_cli.cli.options import JsonOption, PresetOption, RecipeArgument, SetOption
from acmsao_cli.errors import ConfigError

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig
    from acmsao_cli.memory.cards import Card
    from acmsao_cli.memory.choose import Decided
    from acmsao_cli.memory.planner import MemoryPlan


def plan(
    recipe: RecipeArgument,
    preset: PresetOption = None,
    settings: SetOption = None,
    card: Annotated[
        str | None,
        typer.Option(metavar="8gb|16gb|24gb|80gb|N", help="Plan for a card of N GiB, none needed."),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what a step holds over its course, as a PNG."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say what memory RECIPE will take, and what would make it fit."""
    from acmsao_cli.cli.resolved import resolved
    from acmsao_cli.memory.cards import GIB, card_named

    chosen = None if card is None else card_named(card)
    require_drawable(picture)
    config = resolved(recipe, preset, settings, int(chosen.gib * GIB) if chosen else None)
    if chosen is not None:
        require_gpu(config)
    from acmsao_cli.engine.compose import require_composed
    from acmsao_cli.memory import advise
    from acmsao_cli.memory.choose import decide

    require_composed(config, trained_here=chosen is None)
    decided = decide(config, chosen or card_of_budget(config))
    if json:
        print_json(event(decided))
    else:
        print_table(list(rows(decided)))
    if picture is not None:
        from acmsao_cli.memory.picture import draw

        draw(decided.plan, f"a step of {config.name}", picture)
        if not json:
            print_text(f"drawn: {picture}")
    advise.require_fit(decided.plan, decided.config)


def require_drawable(picture: Path | None) -> None:
    """Refuse a picture that would not be what its name says, before anything is planned."""
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture draws a PNG, found `{picture}`", hint="name it *.png")


def require_gpu(config: RunConfig) -> None:
    """Refuse a card for a run that would not use it."""
    if config.recipe.training.device == "cpu":
        raise ConfigError(
            f"--card plans for a GPU, but `training.device` is cpu "
            f"({config.origins['training.device']})",
            hint="leave --card out, or say --set training.device=cuda",
        )


def card_of_budget(config: RunConfig) -> Card | None:
    """A card that leaves the preset's budget, where there is none here: a preset is a card's."""
    import torch

    from acmsao_cli.memory.cards import USABLE_SHARE, card_of

    budget, device = config.recipe.memory.budget_gib, config.recipe.training.device
    of_preset = config.preset is not None and budget is not None and device == "auto"
    if budget is None or not of_preset or torch.cuda.is_available():
        return None
    return card_of(round(budget / USABLE_SHARE, 2))


def event(decided: Decided) -> dict[str, Any]:
    """The plan for programs, in bytes."""
    from acmsao_cli.memory.fit import bounds

    made, config = decided.plan, decided.config
    return {
        "event": "planned",
        "recipe": config.name,
        "preset": config.preset,
        "device": str(made.device),
        "card": made.card.name if made.card else None,
        "dtype": str(made.dtype).removeprefix("torch."),
        "trained_parameters": made.trained_parameters,
        "decided": dict(decided.settings),
        "why": decided.why,
        "by_category": dict(made.by_category),
        "peak_bytes": made.peak_bytes,
        "needed_bytes": made.needed_bytes,
        "host": dict(made.host),
        "disk": dict(made.disk),
        "step": {
            "flops": made.work.flops,
            "bytes_to_device": made.work.to_device,
            "bytes_from_device": made.work.from_device,
        },
        "bounds": [
            {"bytes": bound.nbytes, "by": bound.words} for bound in bounds(config, made.card)
        ],
    }


def rows(decided: Decided) -> Iterator[tuple[str, str]]:
    """The plan for people."""
    from acmsao_cli.config.auto import ALL_BLOCKS
    from acmsao_cli.engine.report import human_bytes
    from acmsao_cli.launch.words import (
        decided_words,
        method_words,
        model_words,
        optimizer_words,
        sizes_words,
    )
    from acmsao_cli.memory.fit import bounds

    made, recipe = decided.plan, decided.config.recipe
    yield "model", model_words(made)
    yield "method", method_words(recipe, made)
    yield "optimizer", optimizer_words(recipe)
    if decided.settings:
        yield "decided", decided_words(decided)
    for name, size in made.by_category.items():
        if size:
            yield name, human_bytes(size)
    yield "peak", f"{human_bytes(made.peak_bytes)}, at the highest moment of a step"
    yield "needs", f"{human_bytes(made.needed_bytes)}, {needed_words(made)}"
    yield "host memory", sizes_words(made.host) or "nothing beside the program"
    yield "disk", sizes_words(made.disk)
    yield from work_rows(made)
    if made.state_away and recipe.memory.resident_blocks == ALL_BLOCKS:
        yield "state away", away_words(made)
    for bound in bounds(decided.config, made.card):
        verdict = "fits" if made.needed_bytes <= bound.nbytes else "does not fit"
        yield "", f"{verdict}: {bound.words} {human_bytes(bound.nbytes)}"


def needed_words(made: MemoryPlan) -> str:
    """What is in the number that is held against bounds."""
    if made.device.type == "cuda":
        return "with the allocator's slack"
    return "beside the program and its libraries"


# Less than this of what a run needs is not worth two crossings a step.
WORTHWHILE = 0.05


def away_words(made: MemoryPlan) -> str:
    """What optimizer state in the host's memory saves, and whether that pays."""
    from acmsao_cli.engine.report import human_bytes
    from acmsao_cli.memory.cards import step_times

    saved = f"{human_bytes(made.state_away)} less on the device"
    if made.state_away < WORTHWHILE * made.needed_bytes:
        return f"{saved}: too little to be worth it, keep the storage without offloaded(...)"
    if made.card is not None:
        work = made.work
        computing, moving = step_times(made.card, work.flops, work.to_device, work.from_device)
        if moving > computing:
            return f"{saved}, for steps that wait for the bus: a smaller storage is quicker"
    return saved


def work_rows(made: MemoryPlan) -> Iterator[tuple[str, str]]:
    """What a step computes and moves, and for a card how long that may take."""
    from acmsao_cli.engine.report import human_bytes
    from acmsao_cli.memory.cards import step_times

    work = made.work
    yield "a step", f"{work.flops / 1e12:.1f} TFLOP in products"
    crossing = work.to_device + work.from_device
    if not crossing:
        return
    moved = f"{human_bytes(work.to_device)} there, {human_bytes(work.from_device)} back"
    if made.card is None:
        yield "transfers", moved
        return
    computing, moving = step_times(made.card, work.flops, work.to_device, work.from_device)
    share = moving / max(computing, 1e-9)
    yield (
        "transfers",
        f"{moved}: {moving:.2f} s beside {computing:.2f} s of computing, "
        f"{'hidden behind it' if share < 1 else 'which the step waits for'} "
        f"(assumed: {made.card.bus / 1e9:g} GB/s each way, {made.card.flops / 1e12:g} TFLOP/s)",
    )
