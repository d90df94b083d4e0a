"""The model of the caching allocator: never less than what is held, and nothing lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acmsao_cli.memory.allocator import BLOCK, LARGE_PAGE, SMALL, SMALL_PAGE, reserved_bytes
from acmsao_cli.optim.tracing import HOST, Event

MIB = 2**20


def course(seed: int, count: int, largest: int) -> list[Event]:
    """Storages that come and go."""
    draw, alive, events = random.Random(seed), [], []
    for number in range(count):
        events.append((number, draw.randint(1, largest), "activations"))
        alive.append(number)
        while alive and draw.random() < 0.45:
            events.append((alive.pop(draw.randrange(len(alive))), 0, "activations"))
    return events


def peak(events: list[Event]) -> int:
    sizes: dict[int, int] = {}
    most = 0
    for number, size, _ in events:
        sizes[number] = -(-size // BLOCK) * BLOCK
        most = max(most, sum(sizes.values()))
    return most


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([4096, 3 * MIB, 50 * MIB]))
def test_as_much_is_taken_as_is_held_at_the_peak_and_not_much_more(seed: int, largest: int) -> None:
    events = course(seed, 120, largest)
    taken = reserved_bytes(events)
    assert taken >= peak(events)
    assert taken <= 2 * peak(events) + SMALL_PAGE + LARGE_PAGE + largest


def test_freed_memory_is_used_again() -> None:
    once = [(0, 30 * MIB, "weights"), (0, 0, "weights")]
    again = [(n, size, name) for n in range(9) for _, size, name in once]
    assert reserved_bytes(again) == reserved_bytes(once) == 40 * MIB


def test_freed_neighbours_become_one_piece() -> None:
    pieces = [(n, 10 * MIB, "activations") for n in range(4)]
    freed = [(n, 0, "activations") for n in (1, 2)]
    assert reserved_bytes([*pieces, *freed, (9, 20 * MIB, "activations")]) == 40 * MIB


def test_small_requests_have_their_own_pages() -> None:
    both = [(0, SMALL, "weights"), (1, SMALL + 1, "weights")]
    assert reserved_bytes(both) == SMALL_PAGE + LARGE_PAGE
    assert reserved_bytes([(n, 1, "weights") for n in range(SMALL_PAGE // BLOCK)]) == SMALL_PAGE


def test_what_is_resized_is_put_elsewhere_and_what_is_renamed_stays() -> None:
    resized = [(0, 10 * MIB, "weights"), (0, 30 * MIB, "weights")]
    assert reserved_bytes(resized) == 40 * MIB
    renamed = [(0, 15 * MIB, "activations"), (0, 15 * MIB, "gradients")]
    assert reserved_bytes(renamed) == 20 * MIB


@pytest.mark.parametrize("category", [HOST])
def test_the_hosts_memory_takes_none_of_the_cards(category: str) -> None:
    assert reserved_bytes([(0, 30 * MIB, category)]) == 0
