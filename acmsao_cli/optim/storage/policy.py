"""Which codec keeps which slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from acmsao_cli.errors import OptimizerError
from acmsao_cli.optim.registry import Registry, suggestion
from acmsao_cli.optim.slots import Extent, Role, Slot
from acmsao_cli.optim.storage.codec import Codec, Full, Summed, Words
from acmsao_cli.optim.storage.offloaded import Offloaded

DEFAULT = "default"


class Storage(Protocol):
    """A policy: the codec for a slot, by role and name."""

    def codec(self, slot: Slot) -> Codec:
        """Return the codec that keeps this slot."""

    def names(self) -> Mapping[str, str]:
        """Return storage names by slot, with the rest under `default`: what build_storage takes."""


@dataclass(frozen=True)
class ByRole:
    """One codec for lossy slots that carry a sign, one for positive ones; in host memory or not.

    `measured` is for slots with a sign and a unit, where it is another.
    """

    name: str
    signed: Codec
    positive: Codec
    measured: Codec | None = None
    offloaded: bool = False

    def codec(self, slot: Slot) -> Codec:
        """Return the codec of the slot's role; what is exact or small is fp32 everywhere."""
        kept = self._kept(slot)
        away = slot.host or (self.offloaded and slot.role is not Role.SCALAR)
        return Offloaded(kept) if away else kept

    def _kept(self, slot: Slot) -> Codec:
        if slot.role is Role.WORD:
            return Words()
        if slot.summed:
            return Summed()
        if slot.extent is not Extent.FULL:
            return Full()
        if slot.role is Role.SIGNED:
            return self.signed if slot.unit is None else self.measured or self.signed
        return self.positive if slot.role is Role.POSITIVE else Full()

    def names(self) -> Mapping[str, str]:
        """Return the one name."""
        return {DEFAULT: self.full_name}

    @property
    def full_name(self) -> str:
        """What `named_storage` takes."""
        return f"offloaded({self.name})" if self.offloaded else self.name


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
        exceptions = {slot: kept.full_name for slot, kept in self.exceptions}
        return {DEFAULT: self.default.full_name} | exceptions


def in_host_memory(kept: Storage) -> Storage:
    """Return the same storage in the host's memory, all of it."""
    if isinstance(kept, PerSlot):
        away = tuple((slot, replace(one, offloaded=True)) for slot, one in kept.exceptions)
        return PerSlot(replace(kept.default, offloaded=True), away)
    assert isinstance(kept, ByRole)
    return replace(kept, offloaded=True)


@dataclass(frozen=True)
class AtHand:
    """A storage whose host cells in these slots were brought to the device."""

    storage: Storage
    slots: frozenset[str]

    def codec(self, slot: Slot) -> Codec:
        """Return the codec that reads and writes there."""
        kept = self.storage.codec(slot)
        return kept.inner if isinstance(kept, Offloaded) and slot.name in self.slots else kept

    def names(self) -> Mapping[str, str]:
        """Return the storage's names."""
        return self.storage.names()


storage: Registry[Callable[[], ByRole]] = Registry("storage")


def named_storage(name: str) -> ByRole:
    """Build a registered storage, or `offloaded(name)` of one."""
    if name.startswith("offloaded(") and name.endswith(")"):
        return replace(storage.get(name.removeprefix("offloaded(")[:-1])(), offloaded=True)
    return storage.get(name)()


def build_storage(names: str | Mapping[str, str], slots: tuple[Slot, ...]) -> Storage:
    """Build a storage from one name, or from names by slot and a `default` (else fp32)."""
    if isinstance(names, str):
        return named_storage(names)
    known = [slot.name for slot in slots]
    chosen = {slot: named_storage(name) for slot, name in names.items()}
    default = chosen.pop(DEFAULT, None) or named_storage("fp32")
    for slot in chosen:
        if slot not in known:
            raise OptimizerError(
                f"storage is given for slot `{slot}`, which this rule does not have",
                hint=suggestion(slot, [*known, DEFAULT]),
            )
    return PerSlot(default, tuple(sorted(chosen.items()))) if chosen else default
