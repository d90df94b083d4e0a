"""The order of training is a function of (keys, batch size, seed, number)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acmsao_cli.data.stream import Stream, check_batch_size
from acmsao_cli.errors import DataError

KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=40)
SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**31 - 1)


def epoch(stream: Stream, number: int) -> list[tuple[int, ...]]:
    first = number * stream.batches_per_epoch
    return [
        tuple(pick.index for pick in stream.batch(index))
        for index in range(first, first + stream.batches_per_epoch)
    ]


@given(keys=KEYS, size=SIZES, seed=SEEDS, number=st.integers(0, 5))
def test_every_epoch_visits_every_item_once(
    keys: list[str], size: int, seed: int, number: int
) -> None:
    seen = [item for batch in epoch(Stream(keys, size, seed), number) for item in batch]
    assert sorted(seen) == list(range(len(keys)))


@given(keys=KEYS, size=SIZES, seed=SEEDS)
def test_a_batch_never_mixes_keys_and_only_the_last_of_a_key_is_small(
    keys: list[str], size: int, seed: int
) -> None:
    small: Counter[str] = Counter()
    for batch in epoch(Stream(keys, size, seed), 0):
        (key,) = {keys[item] for item in batch}
        assert 1 <= len(batch) <= size
        small[key] += len(batch) < size
    assert all(number <= 1 for number in small.values())


@given(keys=KEYS, size=SIZES, seed=SEEDS, asked=st.lists(st.integers(0, 100), max_size=8))
def test_a_batch_does_not_depend_on_what_was_asked_before(
    keys: list[str], size: int, seed: int, asked: list[int]
) -> None:
    travelled = Stream(keys, size, seed)
    for index in asked:
        assert travelled.batch(index) == Stream(keys, size, seed).batch(index)


@given(keys=KEYS, size=SIZES, seed=SEEDS)
def test_ordinals_are_never_used_twice(keys: list[str], size: int, seed: int) -> None:
    stream = Stream(keys, size, seed)
    batches = [stream.batch(index) for index in range(2 * stream.batches_per_epoch)]
    ordinals = [pick.ordinal for batch in batches for pick in batch]
    assert len(set(ordinals)) == len(ordinals)
    assert all(
        pick.ordinal == index * size + position
        for index, batch in enumerate(batches)
        for position, pick in enumerate(batch)
    )


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = [epoch(Stream(["a"] * 50, 4, seed), number) for seed in (0, 1) for number in (0, 1)]
    assert len({str(order) for order in orders}) == 4
    assert epoch(Stream(["a"] * 50, 4, 0), 0)[0] != (0, 1, 2, 3)


def test_batches_of_different_keys_are_shuffled_together() -> None:
    keys = ["a"] * 40 + ["b"] * 40
    order = [keys[batch[0]] for batch in epoch(Stream(keys, 4, 0), 0)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_the_order_is_that_of_the_first_release() -> None:
    assert epoch(Stream("aaabbb", 2, 7), 0) == [(5, 3), (0, 2), (4,), (1,)]


def test_a_batch_larger_than_the_data_is_refused_with_the_remedy() -> None:
    check_batch_size(5, 5)
    with pytest.raises(DataError, match=r"batch_size is 8, .* only 5") as refused:
        check_batch_size(5, 8)
    assert refused.value.hint == "--set training.batch_size=5"
    with pytest.raises(DataError, match="no examples"):
        Stream([], 1, 0)
