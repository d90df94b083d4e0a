"""What a run may take, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acmsao_cli.config.auto import BUDGET
from acmsao_cli.config.recipe import RunConfig
from acmsao_cli.memory.cards import GIB, Card
from acmsao_cli.memory.planner import place_of


@dataclass(frozen=True)
class Bound:
    """Bytes that a run may need; `words` go before them."""

    nbytes: int
    words: str


def bounds(config: RunConfig, card: Card | None = None) -> list[Bound]:
    """The run's budget, and what there is of the card: of `card`, else of the one here."""
    found, budget = [], config.recipe.memory.budget_gib
    if budget is not None:
        found.append(Bound(round(budget * GIB), f"{_whose_budget(config)} allows"))
    device, _ = place_of(config.recipe, card)
    if card is not None and device.type == "cuda":
        if budget is None or round(budget, 2) > round(card.usable_bytes / GIB, 2):
            found.append(Bound(card.usable_bytes, f"a card of {card.gib:g} GiB leaves"))
    elif device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        found.append(Bound(free, f"{device} has free"))
    return found


def _whose_budget(config: RunConfig) -> str:
    origin = config.origins.get(BUDGET)
    if origin is not None and origin.layer == "preset":
        return f"preset {config.preset}"
    if origin is not None and origin.layer == "found":
        return "the card's size"
    return BUDGET


def least_bound(config: RunConfig, card: Card | None = None) -> int | None:
    """The bytes that a run may need; None where nothing bounds it."""
    return min((bound.nbytes for bound in bounds(config, card)), default=None)
