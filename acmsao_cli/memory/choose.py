"""Decides what stands at `auto`: the best that fits, searched by closed forms and then traced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from acmsao_cli.config.auto import (
    ALL_BLOCKS,
    BLOCKS,
    CHECKPOINTING,
    OFFLOADING,
    OPTIONS,
    STORAGE,
    can_stream,
    open_keys,
    with_values,
)
from acmsao_cli.config.parts import AUTO
from acmsao_cli.config.recipe import Origin, Recipe, RunConfig
from acmsao_cli.engine.compose import pipeline_of
from acmsao_cli.engine.report import human_bytes
from acmsao_cli.errors import OptimizerError
from acmsao_cli.memory.cards import Card
from acmsao_cli.memory.estimate import Estimates
from acmsao_cli.memory.fit import least_bound
from acmsao_cli.memory.planner import MemoryPlan, plan

Settings = dict[str, Any]


@dataclass(frozen=True)
class Decided:
    """A run with nothing open, its plan, and why each setting became what it is."""

    config: RunConfig
    plan: MemoryPlan
    reasons: tuple[str, ...] = ()


def decide(config: RunConfig, card: Card | None = None) -> Decided:
    """Choose for every open setting the best with which the run fits what it may take.

    Where nothing fits the smallest is chosen, for `require_fit` to refuse.
    """
    keys = open_keys(config.recipe)
    if not keys:
        return Decided(config, plan(config, card))
    bound = least_bound(config.recipe, card)
    if bound is None:
        chosen = next(candidates(config.recipe))
        made = plan(_with(config, chosen, "nothing bounds the run"), card)
        return _decided(config, chosen, made, "nothing bounds the run")
    return _search(config, card, bound)


def candidates(recipe: Recipe) -> Iterator[Settings]:
    """Values for the open settings, the best first: finer state before quicker steps."""
    keys = open_keys(recipe)
    storages = [s for s in OPTIONS[STORAGE] if _composes(recipe, s)] if STORAGE in keys else [None]
    checkpointing = OPTIONS[CHECKPOINTING] if CHECKPOINTING in keys else (None,)
    chosen: Settings = {}
    for storage, checkpointed in product(storages, checkpointing):
        chosen = {STORAGE: storage, CHECKPOINTING: checkpointed, OFFLOADING: False}
        chosen[BLOCKS] = ALL_BLOCKS
        yield {key: chosen[key] for key in keys}
    if OFFLOADING in keys:
        yield {key: {**chosen, OFFLOADING: True}[key] for key in keys}


def _composes(recipe: Recipe, storage: str) -> bool:
    try:
        pipeline_of(recipe.optimizer.model_copy(update={"storage": storage}))
    except OptimizerError:
        return False
    return True


def _search(config: RunConfig, card: Card | None, bound: float) -> Decided:
    recipe, why = config.recipe, f"the best that fits {human_bytes(bound)}"
    estimates = Estimates(recipe, card)
    chosen: Settings = {}
    for chosen in candidates(recipe):
        if estimates.needed_bytes(with_values(recipe, chosen)) > bound:
            continue
        made = plan(_with(config, chosen, why), card)
        if made.needed_bytes <= bound:
            return _decided(config, chosen, made, why)
    if recipe.memory.resident_blocks == AUTO and estimates.block_bytes and can_stream(recipe):
        return _stream(config, card, bound, chosen, estimates)
    made = plan(_with(config, chosen, "the smallest"), card)
    return _decided(config, chosen, made, "the smallest")


def _stream(
    config: RunConfig, card: Card | None, bound: float, smallest: Settings, estimates: Estimates
) -> Decided:
    """As many blocks as fit stay; activations go too where not even none of them fits."""
    why = f"as many as fit {human_bytes(bound)}"
    without = {key: value for key, value in smallest.items() if key != OFFLOADING}
    kept = {**without, OFFLOADING: False} if OFFLOADING in smallest else without
    count = estimates.most_resident(with_values(config.recipe, kept), bound)
    each = max(sum(estimates.block_bytes) // len(estimates.block_bytes), 1)
    for settings in dict.fromkeys((_frozen(kept), _frozen(smallest))):
        while True:
            chosen = {**dict(settings), BLOCKS: count}
            made = plan(_with(config, chosen, why), card)
            if made.needed_bytes <= bound:
                return _decided(config, chosen, made, why)
            if count == 0:
                break
            count = max(0, count - max(1, round((made.needed_bytes - bound) / each + 0.5)))
    return _decided(config, chosen, made, "the smallest")


def _frozen(settings: Settings) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())


def _with(config: RunConfig, chosen: Settings, why: str) -> RunConfig:
    origins = {key: Origin("planned", why) for key in chosen}
    recipe = with_values(config.recipe, chosen)
    return replace(config, recipe=recipe, origins=config.origins | origins)


def _decided(config: RunConfig, chosen: Settings, made: MemoryPlan, why: str) -> Decided:
    words = tuple(f"{key}={_word(value)}: {why}" for key, value in chosen.items())
    return Decided(_with(config, chosen, why), made, words)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
