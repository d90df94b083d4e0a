"""Every codec there is, with a unit for those that need one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise
from acmsao_cli.optim.slots import Role, Slot
from acmsao_cli.optim.storage.codec import Codec, Pieces
from acmsao_cli.optim.storage.policy import named_storage, storage

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kept:
    """A codec under its storage's name, for a kind of slot."""

    name: str
    codec: Codec
    role: Role

    def __str__(self) -> str:
        return self.name

    def value(self, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
        """Numbers of the role, of many sizes."""
        generator = torch.Generator().manual_seed(seed)
        value = torch.randn(shape, generator=generator)
        value *= torch.randn(shape, generator=generator).exp()
        return value if self.role is Role.SIGNED else value.abs()

    def unit(self, shape: tuple[int, int, int]) -> Tensor | None:
        """A unit where it is measured, one row of it zero."""
        if not self.codec.measured:
            return None
        unit = torch.rand(shape, generator=torch.Generator().manual_seed(9)) + 0.5
        unit[:, -1:] *= shape[1] < 2
        return unit

    def written(self, value: Tensor, salt: int = 11) -> Pieces:
        """Pieces that hold a value."""
        shape = (value.shape[0], value.shape[1], value.shape[2])
        pieces = self.codec.allocate(shape, CPU)
        self.codec.write(pieces, value, noise(shape[0], salt), self.unit(shape))
        return pieces

    def read(self, pieces: Pieces, shape: tuple[int, int, int]) -> Tensor:
        """The value the pieces hold."""
        return self.codec.read(pieces, self.unit(shape)).clone()


def noise(batch: int, salt: int = 11) -> Noise:
    """Noise of the first parameters."""
    return Noise(torch.arange(batch, dtype=torch.int32).view(-1, 1, 1), salt)


def every_codec() -> Iterator[Kept]:
    """For a momentum, one with a unit, a second moment."""
    slots = {
        "signed": Slot("slot", Role.SIGNED),
        "measured": Slot("slot", Role.SIGNED, unit="other"),
        "positive": Slot("slot", Role.POSITIVE),
    }
    seen: list[tuple[Codec, Role]] = []
    for name in (*storage.parts, "offloaded(factored_2bit)"):
        for kind, slot in slots.items():
            codec = named_storage(name).codec(slot)
            if (codec, slot.role) not in seen:
                seen.append((codec, slot.role))
                yield Kept(f"{name}, {kind}", codec, slot.role)


CASES = list(every_codec())
every = pytest.mark.parametrize("kept", CASES, ids=str)
