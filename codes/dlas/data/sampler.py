"""The order in which samples are taken: an endless sequence that can be entered anywhere, so a resume replays nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlas.context import mix_seed
from dlas.data.base import Buckets, Request


class SampleOrder:
    """The endless order: position p belongs to epoch p // length and is the (p % length)-th sample of it.

    Every epoch takes each index once, in an order that depends on (seed, epoch) alone; with a budget, on `multiple`, too.

    Args:
        length: number of samples of the dataset, at least 1.
        seed: seed of the run.
        shuffle: False takes the indices in their own order in every epoch.
        buckets: batches of samples of about one length are put together by them; needs `batch_size`.
        batch_size: of the run.
        multiple: with a budget, of which the size of every batch is one.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        shuffle: bool = True,
        buckets: Buckets | None = None,
        batch_size: int = 1,
        multiple: int = 1,
    ) -> None:
        if length < 1:
            raise ValueError(f"a sample order needs at least one sample, got length {length}")
        self._buckets = buckets if shuffle else None
        self._lengths = np.asarray([] if buckets is None else buckets.lengths)
        if self._budget is not None and length < multiple:
            raise ValueError(f"batches of {multiple} samples or more cannot be made of the {length} of the data set")
        self._batch_size = batch_size
        self._multiple = multiple
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)
        self._ends = np.empty(0, dtype=np.int64)  # with a budget, positions where the epoch's batches end

    @property
    def _budget(self) -> float | None:
        return None if self._buckets is None else self._buckets.budget

    def index(self, position: int) -> int:
        """Index of the sample at `position` (any integer from 0)."""
        epoch, place = divmod(position, self.length)
        if not self.shuffle:
            return place
        self._enter(epoch)
        return int(self._permutation[place])

    def first(self, position: int) -> int:
        """Where a run that has taken `position` samples goes on: there; with a budget, where as many processes as there are
        now can have begun a batch."""
        return position if self._budget is None else position // self._multiple * self._multiple

    def end(self, first: int, batch_size: int) -> int:
        """Where the batch that begins at a position ends: `batch_size` further, or earlier by its budget."""
        if self._budget is None:
            return first + batch_size
        epoch = first // self.length
        self._enter(epoch if first >= self._start(epoch) else epoch - 1)
        return int(self._ends[np.searchsorted(self._ends, first, side="right")])

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:  # positions come in ascending order, so keeping one epoch is enough
            return
        self._permutation = np.random.default_rng(mix_seed(self.seed, "epoch", epoch)).permutation(self.length)
        if self._budget is not None:
            self._fill(epoch, self._budget)
        elif self._buckets is not None:
            self._put_together(epoch)
        self._epoch = epoch

    def _put_together(self, epoch: int) -> None:
        """Sorts stretches of the epoch by length and shuffles the batches within them.

        Batches begin at multiples of their size, of which the epoch's beginning need not be one.
        """
        rng = np.random.default_rng(mix_seed(self.seed, "batches", epoch))
        order, size = self._permutation, self._batch_size
        for start in range(-epoch * self.length % size, self.length - size + 1, self._window(size)):
            stretch = order[start : start + self._window(size)]
            stretch = stretch[: len(stretch) // size * size]
            by_length = stretch[np.argsort(self._lengths[stretch], kind="stable")].reshape(-1, size)
            order[start : start + len(stretch)] = rng.permutation(by_length).ravel()

    def _fill(self, epoch: int, budget: float) -> None:
        """The same for batches of different sizes.

        The first of an epoch begins at a multiple of `multiple`; what the epoch has before it is in the last batch of the
        epoch before.
        """
        rng = np.random.default_rng(mix_seed(self.seed, "batches", epoch))
        order, base = self._permutation, epoch * self.length
        place = self._start(epoch) - base
        last = place + (self.length - place) // self._multiple * self._multiple
        ends: list[int] = []
        window = self._window(self._multiple)
        for start in range(place, last, window):
            stretch = order[start : min(start + window, last)]
            by_length = stretch[np.argsort(self._lengths[stretch], kind="stable")]
            filled = np.split(by_length, self._cuts(self._lengths[by_length], budget))
            filled = [filled[each] for each in rng.permutation(len(filled))]
            order[start : start + len(stretch)] = np.concatenate(filled)
            ends += (base + start + np.cumsum([len(each) for each in filled])).tolist()
        if last < self.length:
            ends.append(self._start(epoch + 1))
        self._ends = np.asarray(ends)

    def _cuts(self, lengths: np.ndarray, budget: float) -> list[int]:
        """Where batches of ascending lengths begin, but for the first."""
        cuts, size = [], 0
        for start in range(0, len(lengths), self._multiple):
            longest = lengths[start + self._multiple - 1]
            if size and (size + self._multiple > self._batch_size or (size + self._multiple) * longest > budget):
                cuts.append(start)
                size = 0
            size += self._multiple
        return cuts

    def _start(self, epoch: int) -> int:
        """The first batch of an epoch, where batches have a budget."""
        return -(-epoch * self.length // self._multiple) * self._multiple

    def _window(self, multiple: int) -> int:
        assert self._buckets is not None
        return max(self._buckets.batches * self._batch_size // multiple, 1) * multiple


def batches(
    order: SampleOrder, batch_size: int, start_position: int = 0, world_size: int = 1, rank: int = 0
) -> Iterator[list[Request]]:
    """The endless sequence of this rank's batches.

    Global batch b holds the positions from start_position + b * batch_size on, however many ranks there are; rank r takes
    its r-th contiguous part, so the parts in order of rank make up the batch. A dataset smaller than a batch wraps round.
    Where the order's batches have a budget, they end where it says, and have `batch_size` samples at most.

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
    return _batches(order, batch_size, start_position, world_size, rank)


def _batches(order: SampleOrder, batch_size: int, start_position: int, world_size: int, rank: int) -> Iterator[list[Request]]:
    first = order.first(start_position)
    while True:
        end = order.end(first, batch_size)
        share = (end - first) // world_size
        own = range(first + rank * share, first + (rank + 1) * share)
        yield [Request(order.index(p), p, order.seed) for p in own]
        first = end
