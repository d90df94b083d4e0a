"""Sums over parameters that do not depend on which was stepped first."""

from __future__ import annotations

import torch
from torch import Tensor


class Totals:
    """One fp32 number for each parameter, each at the place of its number, on its own device."""

    def __init__(self) -> None:
        self._numbers: dict[torch.device, Tensor] = {}

    def reserve(self, device: torch.device, count: int) -> None:
        """Have room for `count` parameters, some of them on this device."""
        for known in {device, *self._numbers}:
            old = self._numbers.get(known)
            new = torch.zeros(count, dtype=torch.float32, device=known)
            if old is not None:
                new[: old.numel()] = old
            self._numbers[known] = new

    def put(self, numbers: Tensor, values: Tensor) -> None:
        """Set the values of the parameters with these numbers, int64 on their device."""
        self._numbers[numbers.device].index_copy_(0, numbers, values.flatten())

    def add(self, numbers: Tensor, entries: Tensor) -> None:
        """Add the sums of (batch, rows, cols) entries; what is not finite counts as nothing."""
        sums = entries.sum((1, 2)).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._numbers[numbers.device].index_add_(0, numbers, sums)

    def sum(self) -> Tensor:
        """Return the sum over all parameters, 0-d."""
        return self._together([numbers.sum() for numbers in self._numbers.values()]).sum()

    def norm(self) -> Tensor:
        """Return the root of the sum of squares, 0-d."""
        parts = [torch.linalg.vector_norm(numbers) for numbers in self._numbers.values()]
        norm: Tensor = torch.linalg.vector_norm(self._together(parts))
        return norm

    def clear(self) -> None:
        """Make all numbers zero."""
        for numbers in self._numbers.values():
            numbers.zero_()

    @staticmethod
    def _together(parts: list[Tensor]) -> Tensor:
        first = parts[0]
        return torch.stack([part.to(first.device, non_blocking=True) for part in parts])
