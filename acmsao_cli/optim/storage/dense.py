"""Every number kept: fp32 exactly, or bf16 with stochastic rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acmsao_cli.optim.noise import Noise, round_stochastic
from acmsao_cli.optim.storage.codec import Codec, Full, Pieces
from acmsao_cli.optim.storage.policy import ByRole, storage


@dataclass(frozen=True)
class Half(Codec):
    """Half the bytes; the mantissa's end is lost, by chance, so that a slow decay still decays."""

    def allocate(self, shape: tuple[int, int, int], device: torch.device) -> Pieces:
        """Return zeros."""
        return {"value": torch.zeros(shape, dtype=torch.bfloat16, device=device)}

    def read(self, pieces: Pieces, unit: Tensor | None = None) -> Tensor:
        """Return a fresh fp32 copy."""
        return pieces["value"].float()

    def write(
        self, pieces: Pieces, value: Tensor, noise: Noise, unit: Tensor | None = None
    ) -> None:
        """Round stochastically; bf16 has fp32's exponents, so nothing normal becomes zero."""
        pieces["value"].copy_(round_stochastic(value, noise))


@storage("fp32")
def fp32() -> ByRole:
    """Exact state, 4 bytes for each number."""
    return ByRole("fp32", signed=Full(), positive=Full())


@storage("bf16")
def bf16() -> ByRole:
    """Stochastically rounded state, 2 bytes for each number."""
    return ByRole("bf16", signed=Half(), positive=Half())
