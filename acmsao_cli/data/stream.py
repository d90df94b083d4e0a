"""The order of training as a pure function of (keys, batch size, seed, batch number).

The number of the next batch is all there is to save: nothing runs, so nothing has to be restored.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil

from acmsao_cli.data.randomness import derive_seed
from acmsao_cli.errors import DataError


@dataclass(frozen=True)
class Pick:
    """Which item stands in a batch, and its number among all that are ever drawn."""

    index: int
    ordinal: int


def check_batch_size(num_examples: int, batch_size: int) -> None:
    """Refuse a batch that the whole data set cannot fill."""
    if num_examples < batch_size:
        raise DataError(
            f"training.batch_size is {batch_size}, but the data has only {num_examples} examples",
            hint=f"--set training.batch_size={num_examples}",
        )


class Stream:
    """Batches of items that agree on their key; every epoch visits each item exactly once.

    Within an epoch each group of like items is shuffled and cut into batches (its last may be
    smaller), then the batches are shuffled. Both follow from (seed, epoch) alone.
    """

    def __init__(self, keys: Sequence[Hashable], batch_size: int, seed: int) -> None:
        if not keys:
            raise DataError("the data set has no examples")
        groups: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        self._groups = tuple(groups.values())
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._plan: list[list[int]] = []

    @property
    def batches_per_epoch(self) -> int:
        """The same for every epoch."""
        return sum(ceil(len(group) / self._batch_size) for group in self._groups)

    def batch(self, index: int) -> tuple[Pick, ...]:
        """The batch with this number, counted from 0 over all epochs."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._plan_epoch(epoch)
        first = index * self._batch_size
        return tuple(Pick(item, first + i) for i, item in enumerate(self._plan[position]))

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        # Sorting by hashes instead of a library's shuffle: the order outlives its versions.
        batches = []
        for group in self._groups:
            order = sorted(group, key=lambda item: derive_seed(self._seed, "item", epoch, item))
            batches += [
                order[start : start + self._batch_size]
                for start in range(0, len(order), self._batch_size)
            ]
        return sorted(batches, key=lambda b: derive_seed(self._seed, "batch", epoch, b[0]))
