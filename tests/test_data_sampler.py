"""The endless sample order: every index once per epoch, entered anywhere, shared by any number of ranks."""

from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlas.data.base import Request
from dlas.data.sampler import SampleOrder, batches


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**9), shuffle=st.booleans())
def test_every_index_comes_once_in_every_epoch(length, seed, epoch, shuffle):
    order = SampleOrder(length, seed, shuffle)
    taken = [order.index(epoch * length + place) for place in range(length)]
    assert sorted(taken) == list(range(length))


def test_without_shuffling_the_order_is_that_of_the_dataset():
    order = SampleOrder(3, seed=5, shuffle=False)
    assert [order.index(p) for p in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_epochs_and_seeds_differ():
    def epoch(seed, number):
        order = SampleOrder(100, seed)
        return tuple(order.index(number * 100 + place) for place in range(100))

    assert len({epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)}) == 4


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 30), batch_size=st.integers(1, 50), skipped=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_start_in_the_middle_is_the_tail_of_the_whole(length, batch_size, skipped, seed):
    whole = list(islice(batches(SampleOrder(length, seed), batch_size), skipped + 5))
    tail = list(islice(batches(SampleOrder(length, seed), batch_size, start_position=skipped * batch_size), 5))
    assert tail == whole[skipped:]


def test_a_far_start_computes_one_epoch_only(monkeypatch):
    order = SampleOrder(1000, seed=3)
    computed = []
    import dlas.data.sampler as module

    mix = module.mix_seed
    monkeypatch.setattr(module, "mix_seed", lambda *parts: computed.append(parts) or mix(*parts))
    next(batches(order, 16, start_position=10**15))
    assert computed == [(3, "epoch", 10**12)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(world_size):
    whole = list(islice(batches(SampleOrder(7, 1), 12, start_position=5), 9))
    ranks = [islice(batches(SampleOrder(7, 1), 12, 5, world_size, rank), 9) for rank in range(world_size)]
    assert [[*chain(*parts)] for parts in zip(*ranks, strict=True)] == whole


def test_a_dataset_smaller_than_the_batch_wraps_round():
    batch = next(batches(SampleOrder(3, 0), 8))
    assert len(batch) == 8
    assert [request.position for request in batch] == list(range(8))
    assert {request.index for request in batch[:3]} == {request.index for request in batch[3:6]} == {0, 1, 2}


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (5, 2), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size, world_size):
    with pytest.raises(ValueError, match=f"batch_size {batch_size} must be a positive multiple"):
        batches(SampleOrder(3, 0), batch_size, world_size=world_size)


def test_an_empty_dataset_has_no_order():
    with pytest.raises(ValueError, match="at least one sample"):
        SampleOrder(0, 0)


def test_randomness_is_a_function_of_seed_position_and_stream():
    def draws(request, *stream):
        return request.rng(*stream).random(4).tolist()

    request = Request(index=3, position=17, seed=5)
    assert draws(request) == draws(Request(index=3, position=17, seed=5))
    assert draws(request) == draws(Request(index=4, position=17, seed=5))  # a replacement is cropped as the original would be
    others = [Request(3, 18, 5), Request(3, 17, 6)]
    assert all(draws(other) != draws(request) for other in others)
    assert draws(request, "crop") != draws(request, "noise")
