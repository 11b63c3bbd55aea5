"""Batches that hold so much and not so many: every sample once an epoch, entered anywhere, shared by any number of ranks."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlas.data.base import Buckets
from dlas.data.sampler import SampleOrder, batches


def order(lengths, budget, size, seed=0, stretch=3, multiple=1):
    return SampleOrder(len(lengths), seed, buckets=Buckets(lengths, stretch, budget), batch_size=size, multiple=multiple)


def some(count, seed=0):
    return np.random.default_rng(seed).uniform(1, 12, count).tolist()


CASES = {
    "count": st.integers(4, 60),
    "size": st.integers(1, 4),
    "world": st.integers(1, 4),
    "budget": st.floats(1, 80),
    "seed": st.integers(0, 99),
}


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_every_sample_comes_once_in_every_epoch(count, size, world, budget, seed):
    lengths, size = some(count), size * world
    whole = chain.from_iterable(batches(order(lengths, budget, size, seed, multiple=world), size))
    taken = list(islice(whole, 3 * count))
    assert [request.position for request in taken] == list(range(3 * count))
    for epoch in range(3):
        assert sorted(request.index for request in taken[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_batches_keep_to_the_budget_and_can_be_shared(count, size, world, budget, seed):
    lengths, size = some(count), size * world
    for batch in islice(batches(order(lengths, budget, size, seed, multiple=world), size), 30):
        assert len(batch) % world == 0
        assert 0 < len(batch) <= size
        epochs = {request.position // count for request in batch}
        held = len(batch) * max(lengths[request.index] for request in batch)
        assert held <= budget or len(batch) == world or len(epochs) > 1


@settings(max_examples=60, deadline=None)
@given(**CASES, skipped=st.integers(0, 25))
def test_a_start_in_the_middle_is_the_tail_of_the_whole(count, size, world, budget, seed, skipped):
    lengths, size = some(count), size * world
    whole = list(islice(batches(order(lengths, budget, size, seed, multiple=world), size), skipped + 6))
    start = sum(map(len, whole[:skipped]))
    tail = list(islice(batches(order(lengths, budget, size, seed, multiple=world), size, start), 6))
    assert tail == whole[skipped:]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batches_evenly(world):
    lengths = some(31)
    ranks = [list(islice(batches(order(lengths, 40, 12, multiple=world), 12, 0, world, r), 12)) for r in range(world)]
    assert all(len({len(part) for part in parts}) == 1 for parts in zip(*ranks, strict=True))
    together = [[*chain(*parts)] for parts in zip(*ranks, strict=True)]
    positions = [request.position for batch in together for request in batch]
    assert positions == list(range(len(positions)))
    one = SampleOrder(31, 0, buckets=Buckets(lengths, 3, 40), batch_size=12, multiple=world)
    assert together == list(islice(batches(one, 12), 12))


def test_with_another_number_of_ranks_a_run_goes_on():
    lengths = some(31)
    taken = sum(map(len, islice(batches(order(lengths, 30, 12), 12), 5)))
    first = next(batches(order(lengths, 30, 12, multiple=4), 12, taken, 4, 0))
    assert taken - 4 < first[0].position <= taken


def test_batches_are_full_and_alike():
    """Much less padding than batches of one size as they come, and nearly as much as the budget in each."""
    lengths = some(2000, seed=1)
    budget = 200
    found = list(islice(batches(order(lengths, budget, 64, stretch=8), 64), 60))
    held = [len(batch) * max(lengths[request.index] for request in batch) for batch in found]
    said = [sum(lengths[request.index] for request in batch) for batch in found]
    assert np.mean(held) > 0.85 * budget
    assert sum(said) / sum(held) > 0.93
    plain = list(islice(batches(SampleOrder(2000, 0), 32), 60))
    padded = [len(batch) * max(lengths[request.index] for request in batch) for batch in plain]
    assert sum(sum(lengths[r.index] for r in batch) for batch in plain) / sum(padded) < 0.6


def test_a_data_set_that_is_too_small():
    with pytest.raises(ValueError, match="batches of 4 samples or more cannot be made of the 3"):
        order(some(3), 10, 4, multiple=4)
