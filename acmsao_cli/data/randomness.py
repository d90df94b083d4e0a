"""Randomness as a function of (seed, purpose, numbers), never of a running generator.

A run that is resumed, or that accumulates its batch in other portions, then draws the same noise
for the same example without any generator's state being saved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed that depends on every argument."""
    text = repr((seed, purpose, *numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Draw:
    """The random numbers that belong to one example at one point of the run.

    `ordinal` counts the examples drawn since the start of training: one seen again draws anew.
    """

    seed: int
    ordinal: int

    def generator(self, purpose: str) -> Generator:
        """A fresh CPU generator for `purpose`; the same each time it is asked for."""
        return Generator().manual_seed(derive_seed(self.seed, purpose, self.ordinal))

    def normal(self, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Standard normal fp32 numbers on the CPU."""
        return torch.randn(shape, generator=self.generator(purpose))

    def uniform(self, purpose: str) -> float:
        """One number in [0, 1)."""
        return float(torch.rand((), generator=self.generator(purpose)))

    def integer(self, purpose: str, below: int) -> int:
        """One integer in [0, below)."""
        return int(torch.randint(below, (), generator=self.generator(purpose)))
