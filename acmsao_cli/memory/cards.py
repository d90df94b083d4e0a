"""Cards by the memory that they are sold with, and what can be said of such cards without one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from acmsao_cli.errors import ConfigError

GIB: Final = 2**30

# The rest is the display's, the driver's and other programs'.
USABLE_SHARE: Final = 0.95

# The CUDA context with the kernels that are loaded into it, and the workspace of the products. An
# assumption, from what is usual: it lies outside of what torch's allocator counts.
CONTEXT_BYTES: Final = int(0.55 * GIB)


@dataclass(frozen=True)
class Card:
    """A card of `gib` GiB; what it moves and computes is assumed, from cards sold with as much.

    `bus` in bytes a second and direction, `flops` a second in bf16 as training reaches them (45 %
    of the nominal ones).
    """

    name: str
    gib: float
    bus: float
    flops: float

    @property
    def usable_bytes(self) -> int:
        """What a run may take."""
        return int(USABLE_SHARE * self.gib * GIB)


CARDS: Final = {
    card.name: card
    for card in (
        Card("8gb", 8, 12e9, 20e12),
        Card("16gb", 16, 25e9, 44e12),
        Card("24gb", 24, 25e9, 74e12),
        Card("80gb", 80, 50e9, 445e12),
    )
}
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gb|gib)?", re.IGNORECASE)


def card_named(text: str) -> Card:
    """The card of `16gb` or `12.5`: GiB. Raises ConfigError."""
    found = SIZE.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) < 1e6:
        raise ConfigError(
            f"--card takes a size, found `{text}`",
            hint=f"{', '.join(CARDS)}, or a number of GiB, as in --card 12",
        )
    return card_of(float(found[1]))


def card_of(gib: float) -> Card:
    """A card of so many GiB, as fast as the largest of the known ones that has no more."""
    known = [card for card in CARDS.values() if card.gib <= gib] or list(CARDS.values())[:1]
    like = known[-1]
    return like if like.gib == gib else Card(f"{gib:g}gb", gib, like.bus, like.flops)


def step_times(card: Card, flops: int, to_device: int, from_device: int) -> tuple[float, float]:
    """Seconds that a step computes and that its bytes cross, both ways at once."""
    return flops / card.flops, max(to_device, from_device) / card.bus
