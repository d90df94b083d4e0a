"""How much of the card the caching allocator takes for what a traced step holds.

A model of torch's CUDA allocator with expandable segments: sizes in multiples of 512 bytes, those
up to 1 MiB in one pool and larger ones in another, each a single range of addresses that grows at
its end by pages of 2 and 20 MiB. A request takes the smallest free piece that holds it, a freed
piece joins its free neighbours, and a page once taken is kept. It was written from the allocator's
rules (c10/cuda/CUDACachingAllocator.cpp). The streams of copies count as the one that computes, but
torch caches for each stream apart: where blocks or activations stream, it may take more.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from acmsao_cli.optim.tracing import HOST, Event

# Sizes are multiples of this many bytes.
BLOCK: Final = 512
# Up to this many bytes a request is small.
SMALL: Final = 1 << 20
# What the ranges of addresses grow by.
SMALL_PAGE: Final = 2 << 20
LARGE_PAGE: Final = 20 << 20


@dataclass(eq=False)
class _Pool:
    """A range of addresses, of which the pages below `end` are taken."""

    page: int
    end: int = 0
    free: list[tuple[int, int]] = field(default_factory=list)  # (size, start), sorted
    starting: dict[int, int] = field(default_factory=dict)  # free pieces: size by start
    ending: dict[int, int] = field(default_factory=dict)  # and start by end

    def take(self, size: int) -> int:
        """The start of a piece of this size."""
        place = bisect.bisect_left(self.free, (size, -1))
        if place == len(self.free):
            self._grow(size)
            place = bisect.bisect_left(self.free, (size, -1))
        length, start = self.free[place]
        self._remove(start, length)
        if length > size:
            self._add(start + size, length - size)
        return start

    def give(self, start: int, size: int) -> None:
        """Take a piece back."""
        if start in self.ending:
            before = self.ending[start]
            length = self.starting[before]
            self._remove(before, length)
            start, size = before, size + length
        if start + size in self.starting:
            length = self.starting[start + size]
            self._remove(start + size, length)
            size += length
        self._add(start, size)

    def _grow(self, size: int) -> None:
        last = self.ending.get(self.end, self.end)
        more = -(-(size - (self.end - last)) // self.page) * self.page
        start, self.end = self.end, self.end + more
        self.give(start, more)

    def _add(self, start: int, size: int) -> None:
        bisect.insort(self.free, (size, start))
        self.starting[start] = size
        self.ending[start + size] = start

    def _remove(self, start: int, size: int) -> None:
        del self.free[bisect.bisect_left(self.free, (size, start))]
        del self.starting[start]
        del self.ending[start + size]


def reserved_bytes(events: Iterable[Event]) -> int:
    """The pages that are taken in the end, which is the most that ever were."""
    small, large = _Pool(SMALL_PAGE), _Pool(LARGE_PAGE)
    placed: dict[int, tuple[_Pool, int, int]] = {}  # pool, start and size by the storage's number
    for number, wanted, category in events:
        size = 0 if category == HOST else -(-wanted // BLOCK) * BLOCK
        before = placed.get(number)
        if before is not None:
            pool, start, length = before
            if length == size:
                continue
            pool.give(start, length)
            del placed[number]
        if size:
            pool = small if size <= SMALL else large
            placed[number] = pool, pool.take(size), size
    return small.end + large.end


def page_locked_bytes(size: int) -> int:
    """What a request for page-locked memory takes: the next power of two.

    torch's rule (ATen/core/CachingHostAllocator.h), without the thresholds that may be set.
    """
    return 1 << (size - 1).bit_length() if size else 0


def host_peak_bytes(events: Iterable[Event]) -> int:
    """The most page-locked memory that is taken at once."""
    taken: Counter[int] = Counter()
    total = most = 0
    for number, size, category in events:
        rounded = page_locked_bytes(size) if category == HOST else 0
        total += rounded - taken[number]
        taken[number] = rounded
        most = max(most, total)
    return most
