"""Decides what stands at `auto`: the best that fits, searched by closed forms and then traced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    changed,
    open_keys,
    with_values,
)
from acmsao_cli.config.parts import AUTO, spoken
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
    """A run with nothing open, its plan, and what each open setting became and why."""

    config: RunConfig
    plan: MemoryPlan
    settings: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def decide(config: RunConfig, card: Card | None = None) -> Decided:
    """Choose for every open setting the best with which the run fits what it may take.

    Where nothing fits the smallest is chosen, for `require_fit` to refuse.
    """
    recipe = config.recipe
    if not open_keys(recipe):
        return Decided(config, plan(config, card))
    bound = least_bound(config, card)
    if bound is None:
        return _decided(config, card, next(candidates(recipe)), "nothing bounds the run")
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
    recipe, estimates = config.recipe, Estimates(config.recipe, card)
    why, chosen = f"the best that fits {human_bytes(bound)}", Settings()
    passed: tuple[Settings, int] | None = None
    for chosen in candidates(recipe):
        needed = estimates.needed_bytes(with_values(recipe, chosen))
        if needed <= bound or estimates.is_small:
            found = _decided(config, card, chosen, _beside(why, chosen, passed))
            needed = found.plan.needed_bytes
            if needed <= bound:
                return found
        passed = chosen, needed
    if recipe.memory.resident_blocks == AUTO and estimates.block_bytes and can_stream(recipe):
        return _stream(config, card, bound, chosen, estimates)
    return _decided(config, card, chosen, "the smallest there is")


def _beside(why: str, chosen: Settings, passed: tuple[Settings, int] | None) -> str:
    """Why, with what the next better settings would have needed."""
    if passed is None:
        return why
    better, needed = passed
    others = {key: value for key, value in better.items() if chosen[key] != value}
    return f"{why}; {words_of(others)} would need {human_bytes(needed)}"


def _stream(
    config: RunConfig, card: Card | None, bound: float, smallest: Settings, estimates: Estimates
) -> Decided:
    """As many blocks as fit stay; activations go too where not even none of them fits."""
    why = f"as many blocks stay as fit {human_bytes(bound)}"
    kept = {key: False if key == OFFLOADING else value for key, value in smallest.items()}
    count = estimates.most_resident(with_values(config.recipe, kept), bound)
    each = max(sum(estimates.block_bytes) / len(estimates.block_bytes), 1)
    for settings in (kept, smallest):
        while True:
            found = _decided(config, card, {**settings, BLOCKS: count}, why)
            over = found.plan.needed_bytes - bound
            if over <= 0:
                return found
            if count == 0:
                break
            count = max(0, count - math.ceil(over / each))
    return replace(found, why="the smallest there is")


def _decided(config: RunConfig, card: Card | None, chosen: Settings, why: str) -> Decided:
    run = changed(config, chosen, Origin("planned", why))
    return Decided(run, plan(run, card), chosen, why)


def words_of(settings: Mapping[str, Any]) -> str:
    """Settings as they stand on a command line, by their last names."""
    return ", ".join(f"{key.rpartition('.')[2]}={spoken(value)}" for key, value in settings.items())
