"""The order in which samples are taken: an endless sequence that can be entered anywhere, so a resume replays nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlas.context import mix_seed
from dlas.data.base import Buckets, Request


class SampleOrder:
    """The endless order: position p belongs to epoch p // length and is the (p % length)-th sample of it.

    Every epoch takes each index once, in an order that depends on (seed, epoch) alone.

    Args:
        length: number of samples of the dataset, at least 1.
        seed: seed of the run.
        shuffle: False takes the indices in their own order in every epoch.
        buckets: batches of samples of about one length are put together by them; needs `batch_size`.
        batch_size: of the run.
    """

    def __init__(
        self, length: int, seed: int, shuffle: bool = True, buckets: Buckets | None = None, batch_size: int = 1
    ) -> None:
        if length < 1:
            raise ValueError(f"a sample order needs at least one sample, got length {length}")
        self._lengths = None if buckets is None else np.asarray(buckets.lengths)
        self._window = 0 if buckets is None else buckets.batches * batch_size
        self._batch_size = batch_size
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Index of the sample at `position` (any integer from 0)."""
        epoch, place = divmod(position, self.length)
        if not self.shuffle:
            return place
        if epoch != self._epoch:  # positions come in ascending order, so keeping one epoch is enough
            self._permutation = np.random.default_rng(mix_seed(self.seed, "epoch", epoch)).permutation(self.length)
            if self._lengths is not None:
                self._put_together(epoch, self._lengths)
            self._epoch = epoch
        return int(self._permutation[place])

    def _put_together(self, epoch: int, lengths: np.ndarray) -> None:
        """Sorts stretches of the epoch by length and shuffles the batches within them.

        Batches begin at multiples of their size, of which the epoch's beginning need not be one.
        """
        rng = np.random.default_rng(mix_seed(self.seed, "batches", epoch))
        order, size = self._permutation, self._batch_size
        for start in range(-epoch * self.length % size, self.length - size + 1, self._window):
            stretch = order[start : start + self._window]
            stretch = stretch[: len(stretch) // size * size]
            by_length = stretch[np.argsort(lengths[stretch], kind="stable")].reshape(-1, size)
            order[start : start + len(stretch)] = rng.permutation(by_length).ravel()


def batches(
    order: SampleOrder, batch_size: int, start_position: int = 0, world_size: int = 1, rank: int = 0
) -> Iterator[list[Request]]:
    """The endless sequence of this rank's batches.

    Global batch b holds the positions from start_position + b * batch_size on, however many ranks there are; rank r takes
    its r-th contiguous part, so the parts in order of rank make up the batch. A dataset smaller than a batch wraps round.

    Args:
        order: the endless sample order.
        batch_size: size of the global batch, a multiple of world_size.
        start_position: number of samples already taken (by all ranks).
        world_size: number of ranks.
        rank: this rank, in [0, world_size).

    Yields:
        batch_size / world_size requests.

    Raises:
        ValueError: batch_size is not a positive multiple of world_size, or start_position is negative.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the number of processes ({world_size}), since the global "
            "batch is shared evenly among them"
        )
    if start_position < 0:
        raise ValueError(f"start_position must be 0 or more, got {start_position}")
    return _batches(order, batch_size, start_position, batch_size // world_size, rank)


def _batches(order: SampleOrder, batch_size: int, start_position: int, share: int, rank: int) -> Iterator[list[Request]]:
    first = start_position + rank * share
    while True:
        yield [Request(order.index(p), p, order.seed) for p in range(first, first + share)]
        first += batch_size
