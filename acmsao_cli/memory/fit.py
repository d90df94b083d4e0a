"""What a run may take, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acmsao_cli.config.recipe import Recipe
from acmsao_cli.memory.cards import GIB, Card
from acmsao_cli.memory.planner import place_of


@dataclass(frozen=True)
class Bound:
    """Bytes that a run may need; `words` go before them."""

    nbytes: float
    words: str


def bounds(recipe: Recipe, card: Card | None = None) -> list[Bound]:
    """The recipe's budget, and what there is of the card: of `card`, else of the one here."""
    found, budget = [], recipe.memory.budget_gib
    if budget is not None:
        found.append(Bound(budget * GIB, "memory.budget_gib allows"))
    device, _ = place_of(recipe, card)
    if card is not None and device.type == "cuda":
        if budget is None or round(budget, 2) > round(card.usable_bytes / GIB, 2):
            found.append(Bound(card.usable_bytes, f"a card of {card.gib:g} GiB leaves"))
    elif device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        found.append(Bound(float(free), f"{device} has free"))
    return found


def least_bound(recipe: Recipe, card: Card | None = None) -> float | None:
    """The bytes that a run may need; None where nothing bounds it."""
    return min((bound.nbytes for bound in bounds(recipe, card)), default=None)
