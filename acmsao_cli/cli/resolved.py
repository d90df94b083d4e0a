"""A run's configuration as `train` and `plan` take it: under the preset for the GPU here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.config.auto import BUDGET, changed
from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.config.recipe import Origin

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig


def resolved(
    recipe: str,
    preset: str | None,
    settings: Sequence[str] | None,
    card_bytes: int | None = None,
) -> RunConfig:
    """What was asked for. Without a preset, the one for a card of so many bytes, or for the GPU
    here, with the budget that such a card has; none on a CPU.

    Mistakes are told before torch is loaded.
    """
    config = resolve(Request(recipe, preset, tuple(settings or ())))
    quiet_libraries()
    if preset is not None:
        return config
    device = config.recipe.training.device
    size = gpu_bytes(device) if card_bytes is None else card_bytes
    if size is None:
        return config
    found = resolve(Request(recipe, preset_for(size), tuple(settings or ())))
    return with_budget_of(found, size)


def gpu_bytes(wanted: str) -> int | None:
    """The memory of the GPU that `training.device` asks for; None if it is none."""
    import torch

    from acmsao_cli.engine.precision import resolve_device

    device = resolve_device(wanted)
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def preset_for(total_bytes: int) -> str:
    """The largest preset whose card has no more than a card of so many bytes leaves."""
    from acmsao_cli.memory.cards import CARDS

    fitting = [card.name for card in CARDS.values() if card.usable_bytes <= total_bytes]
    return fitting[-1] if fitting else next(iter(CARDS))


def with_budget_of(config: RunConfig, total_bytes: int) -> RunConfig:
    """The run with the budget of a card that is larger than its preset's."""
    from acmsao_cli.memory.cards import GIB, card_of

    usable = round(card_of(total_bytes / GIB).usable_bytes / GIB, 2)
    budget = config.recipe.memory.budget_gib
    if config.origins[BUDGET].layer != "preset" or budget is None or usable <= budget:
        return config
    return changed(config, {BUDGET: usable}, Origin("found", "by the card's size"))
