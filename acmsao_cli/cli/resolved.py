"""A run's configuration as `train` and `plan` take it: under the preset for the GPU here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from acmsao_cli.cli.quiet import quiet_libraries
from acmsao_cli.config.layers import Request, resolve

if TYPE_CHECKING:
    from acmsao_cli.config.recipe import RunConfig


def resolved(recipe: str, preset: str | None, settings: Sequence[str] | None) -> RunConfig:
    """What was asked for. Without a preset, the one for the present GPU's size; none on a CPU.

    Mistakes are told before torch is loaded.
    """
    config = resolve(Request(recipe, preset, tuple(settings or ())))
    quiet_libraries()
    found = None if preset is not None else preset_here(config.recipe.training.device)
    if found is None:
        return config
    return resolve(Request(recipe, found, tuple(settings or ())))


def preset_here(wanted: str) -> str | None:
    """The preset for the device that `training.device` asks for."""
    import torch

    from acmsao_cli.engine.precision import resolve_device

    device = resolve_device(wanted)
    if device.type != "cuda":
        return None
    return preset_for(torch.cuda.get_device_properties(device).total_memory)


def preset_for(total_bytes: int) -> str:
    """The largest preset whose card has no more than a card of so many bytes leaves."""
    from acmsao_cli.memory.cards import CARDS

    fitting = [card.name for card in CARDS.values() if card.usable_bytes <= total_bytes]
    return fitting[-1] if fitting else next(iter(CARDS))
