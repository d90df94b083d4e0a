"""Which codec keeps which slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry, suggestion
from acmsao_cli.optim.slots import Extent, Role, Slot
from acmsao_cli.optim.storage.codec import Codec, Full, Words

DEFAULT = "default"


class Storage(Protocol):
    """A policy: the codec for a slot, by role and name."""

    def codec(self, slot: Slot) -> Codec:
        """Return the codec that keeps this slot."""

    def names(self) -> Mapping[str, str]:
        """Return storage names by slot, with the rest under `default`: what build_storage takes."""


@dataclass(frozen=True)
class ByRole:
    """One codec for lossy slots that carry a sign, one for positive ones."""

    name: str
    signed: Codec
    positive: Codec

    def codec(self, slot: Slot) -> Codec:
        """Return the codec of the slot's role; what is exact or small is fp32 everywhere."""
        if slot.role is Role.WORD:
            return Words()
        if slot.extent is not Extent.FULL:
            return Full()
        if slot.role is Role.SIGNED:
            return self.signed
        return self.positive if slot.role is Role.POSITIVE else Full()

    def names(self) -> Mapping[str, str]:
        """Return the one name."""
        return {DEFAULT: self.name}


@dataclass(frozen=True)
class PerSlot:
    """A storage with exceptions by slot name."""

    default: ByRole
    exceptions: tuple[tuple[str, ByRole], ...]

    def codec(self, slot: Slot) -> Codec:
        """Return the exception's codec where there is one."""
        return dict(self.exceptions).get(slot.name, self.default).codec(slot)

    def names(self) -> Mapping[str, str]:
        """Return the default's name and the exceptions."""
        return {DEFAULT: self.default.name} | {slot: kept.name for slot, kept in self.exceptions}


storage: Registry[Callable[[], ByRole]] = Registry("storage")


def build_storage(names: str | Mapping[str, str], slots: tuple[Slot, ...]) -> Storage:
    """Build a storage from one name, or from names by slot and a `default` (else fp32)."""
    if isinstance(names, str):
        return storage.get(names)()
    known = [slot.name for slot in slots]
    chosen = {slot: storage.get(name)() for slot, name in names.items()}
    default = chosen.pop(DEFAULT, None) or storage.get("fp32")()
    for slot in chosen:
        if slot not in known:
            raise OptimizerError(
                f"storage is given for slot `{slot}`, which this rule does not have",
                hint=suggestion(slot, [*known, DEFAULT]),
            )
    return PerSlot(default, tuple(sorted(chosen.items()))) if chosen else default
