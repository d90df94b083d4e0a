"""What a run is changed to when its memory runs out in the first steps: one rung at a time.

The cheapest come first. A setting that the recipe or --set names is left as it is, but for the
micro-batch: in smaller portions and so many more of them, a step has as many examples as before.
Which they are changes with it, as with any other batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from acmsao_cli.checkpoint.resume import flatten
from acmsao_cli.config.auto import (
    ALL_BLOCKS,
    BLOCKS,
    CHECKPOINTING,
    OFFLOADING,
    changed,
    value_of,
    with_values,
)
from acmsao_cli.config.causal_lm import CausalLmRecipe
from acmsao_cli.config.parts import spoken
from acmsao_cli.config.recipe import SAID, Origin, Recipe, RunConfig
from acmsao_cli.config.rules import broken_rules

Settings = Mapping[str, Any]

CHUNK: Final = "memory.loss_chunk"
# Positions that are projected to the vocabulary together; `auto` and none are more.
CHUNKS: Final = (128, 32)

BATCH_SIZE: Final = "training.batch_size"
ACCUMULATION: Final = "training.accumulation"
BATCH_SCHEDULE: Final = "training.batch_schedule"
ADAPTIVE_BATCH: Final = "training.adaptive_batch"
# They belong together: one of them alone would make another step.
PORTIONS: Final = frozenset({BATCH_SIZE, ACCUMULATION, BATCH_SCHEDULE, ADAPTIVE_BATCH})


def next_rung(
    config: RunConfig, num_blocks: int, *, on_gpu: bool, continued: bool
) -> Settings | None:
    """The settings to try next; None where nothing is left that may be changed.

    `num_blocks` of the model could wait in the host's memory, which helps if that is not what ran
    out (`on_gpu`). A run that was `continued` draws its examples by micro-batches of its own size.
    """
    rungs: list[Callable[[Recipe, int], Iterator[Settings]]] = [_checkpointing, _smaller_chunk]
    if not continued:
        rungs.append(_smaller_portions)
    if on_gpu:
        rungs += [_fewer_blocks, _offloading]
    found = (settings for rung in rungs for settings in rung(config.recipe, num_blocks))
    return next((settings for settings in found if _may_be(config, settings)), None)


def _may_be(config: RunConfig, settings: Settings) -> bool:
    if not settings.keys() <= PORTIONS and any(_is_said(config, key) for key in settings):
        return False
    recipe = with_values(config.recipe, settings)
    return not any(broken_rules(recipe, config.origins, config.name))


def _is_said(config: RunConfig, key: str) -> bool:
    origin = config.origins.get(key)
    return origin is not None and origin.layer in SAID


def _checkpointing(recipe: Recipe, _: int) -> Iterator[Settings]:
    if not recipe.training.gradient_checkpointing:
        yield {CHECKPOINTING: True}


def _smaller_chunk(recipe: Recipe, _: int) -> Iterator[Settings]:
    if not isinstance(recipe, CausalLmRecipe):
        return
    now = recipe.memory.loss_chunk
    most = recipe.training.batch_size * recipe.data.max_length
    if isinstance(now, int):
        most = min(now, most)
    yield from ({CHUNK: chunk} for chunk in CHUNKS if chunk < most)


def _smaller_portions(recipe: Recipe, _: int) -> Iterator[Settings]:
    """Not where gradients are freed as they come: more portions would keep them."""
    training = recipe.training
    if training.batch_size == 1 or (
        recipe.method.kind == "full" and recipe.optimizer.fused_backward
    ):
        return
    parts = _smallest_divisor(training.batch_size)
    settings: dict[str, Any] = {
        BATCH_SIZE: training.batch_size // parts,
        ACCUMULATION: training.accumulation * parts,
    }
    if training.batch_schedule:
        settings[BATCH_SCHEDULE] = [[step, n * parts] for step, n in training.batch_schedule]
    if training.adaptive_batch:
        settings[ADAPTIVE_BATCH] = training.adaptive_batch * parts
    yield settings


def _smallest_divisor(number: int) -> int:
    return next(divisor for divisor in range(2, number + 1) if number % divisor == 0)


def _fewer_blocks(recipe: Recipe, num_blocks: int) -> Iterator[Settings]:
    now = recipe.memory.resident_blocks
    resident = num_blocks if now == ALL_BLOCKS else int(now)
    if resident > 0:
        yield {BLOCKS: resident // 2 if resident > 3 else 0}


def _offloading(recipe: Recipe, _: int) -> Iterator[Settings]:
    if not recipe.memory.offload_activations:
        yield {OFFLOADING: True}


def climbed(asked: RunConfig, config: RunConfig, settings: Settings, why: str) -> RunConfig:
    """The run with these settings; `before` tells what `asked`, undecided, has in their place."""
    run = changed(config, settings, Origin("ladder", why))
    then, now = flatten(asked.as_dict()), flatten(run.as_dict())
    return replace(run, before={key: then[key] for key in then if then[key] != now[key]})


def as_it_went_on(config: RunConfig, header: Mapping[str, Any]) -> RunConfig:
    """The run as a checkpoint's was changed when its memory ran out, where the same is asked for.

    `header` is the checkpoint's. What is asked for may be the changed run itself.
    """
    before: Mapping[str, Any] = header.get("before", {})
    saved, now = flatten(header["recipe"]), flatten(config.as_dict())
    if before and all(now.get(key) == saved.get(key) for key in before):
        return replace(config, before=before)
    same = {key for key, value in before.items() if now.get(key) == value}
    if not before.keys() & PORTIONS <= same:
        same -= PORTIONS
    settings = {key: saved[key] for key in sorted(same)}
    if not settings:
        return config
    run = changed(config, settings, Origin("ladder", "as the run went on"))
    return replace(run, before={key: before[key] for key in settings})


def words_of(recipe: Recipe, settings: Settings) -> str:
    """Settings as on a command line, each with what it is in `recipe`."""
    return ", ".join(
        f"{key}={spoken(value)} (was {spoken(value_of(recipe, key))})"
        for key, value in settings.items()
    )
