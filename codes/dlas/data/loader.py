"""From a dataset to an endless iterator of batches, in this process or through workers, with the same result."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from dlas.data.base import BadSample, Dataset, Request, Sample
from dlas.data.sampler import SampleOrder, batches
from dlas.errors import DataError, UserError, printable

_LOG = logging.getLogger(__name__)

Batch = dict[str, Any]
"""What the dataset's `collate` gives, and `positions`: the place of each sample in the endless order."""


class Loader:
    """Endless iterator of batches; made by `build_loader`.

    Attributes:
        bad_files: every unusable file met so far and why, under `on_bad_file: skip`.
        reading: gives what each process that reads data reads now, or has read last.
    """

    def __init__(
        self,
        fetched: Iterator[_Fetched],
        crew: _Crew | None,
        reading: Callable[[], list[str]],
        bad_files: dict[str, str] | None = None,
    ) -> None:
        self.bad_files: dict[str, str] = {} if bad_files is None else bad_files
        self._fetched: Iterator[_Fetched] | None = fetched
        self._crew = crew
        self.reading = reading

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            BadSample: a file is unusable and `on_bad_file` is `error`.
            DataError: the samples of a batch do not fit together, every file is bad, or a worker died.
        """
        if self._fetched is None:
            raise StopIteration
        try:
            fetched = next(self._fetched)
        except RuntimeError as error:
            death = self._crew.death() if self._crew else None
            if death is None:
                raise
            self.close()
            raise DataError(death) from error
        if fetched.error is not None:
            self.close()
            raise fetched.error
        for path, reason in fetched.bad_files.items():
            if path not in self.bad_files:
                self.bad_files[path] = reason
                _LOG.warning("skipped bad file %s: %s", printable(path), reason)
        return fetched.batch

    def close(self) -> None:
        """Ends the worker processes. Further iteration stops at once."""
        if self._crew is not None and self._fetched is not None:
            # PyTorch would do this when the last reference goes, which an exception's trace may hold for long.
            self._fetched._shutdown_workers()  # type: ignore[attr-defined]
        self._fetched = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def build_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    order: SampleOrder,
    start_position: int = 0,
    n_workers: int = 0,
    pin_memory: bool = True,
    prefetch_factor: int = 2,
    world_size: int = 1,
    rank: int = 0,
    bad_files: dict[str, str] | None = None,
) -> Loader:
    """Builds the endless iterator of a rank's batches. Its batches do not depend on `n_workers` or where it was entered.

    Args:
        dataset: where samples come from; its `on_bad_file` decides about unusable files.
        batch_size: size of the global batch.
        order: the endless sample order.
        start_position: number of samples already taken (by all ranks).
        n_workers: processes that read ahead; 0 reads in this process when asked.
        pin_memory: put batches into page-locked memory for a faster copy to the GPU; without a GPU nothing is done.
        prefetch_factor: batches that each worker reads ahead.
        world_size: number of ranks.
        rank: this rank.
        bad_files: those that earlier sittings of the run have met; takes the new ones.
    """
    requests = batches(order, batch_size, start_position, world_size, rank)
    pin = pin_memory and torch.cuda.is_available()
    if n_workers == 0:
        latest: list[int] = []

        def note(index: int) -> None:
            latest[:] = [index]

        def reading() -> list[str]:
            return [dataset.source(each) for each in latest]

        in_process = (_fetch(dataset, each, note) for each in requests)
        return Loader(map(_pin, in_process) if pin else in_process, None, reading, bad_files)

    dataset.prepare()
    crew = _Crew(dataset, n_workers)
    with _without_child_signal_handler():
        fetched = iter(
            DataLoader(
                crew,
                batch_size=None,  # one request list is one item: the batch is put together in the worker
                sampler=requests,
                num_workers=n_workers,
                collate_fn=_unchanged,  # type: ignore[arg-type]  # the stubs know only lists
                worker_init_fn=crew.start_worker,
                pin_memory=pin,
                prefetch_factor=prefetch_factor,
                generator=torch.Generator(),  # its own, or it would draw from the run's
            )
        )
    return Loader(fetched, crew, crew.files, bad_files)


def evaluation_items(
    dataset: Dataset, bad_files: dict[str, str] | None = None, batch_size: int = 1, share: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every sample once, in batches of samples that are alike in their keys, shapes and types; the same on every call.

    With `batch_size` 1 they come in the dataset's own order. Samples that wait for their like are at most four batches.

    Args:
        dataset: an evaluation dataset.
        bad_files: under `on_bad_file: skip`, takes the unusable files and why. They are left out, not replaced: a replacement
            would count twice in a metric.
        batch_size: most samples of a batch.
        share: (r, n): only the r-th of n contiguous parts of the set, as even as can be.

    Raises:
        BadSample: a file is unusable and `on_bad_file` is `error`.
        DataError: every file is bad.
    """
    bad: dict[str, str] = {} if bad_files is None else bad_files
    waiting: dict[tuple[Any, ...], list[tuple[int, Sample]]] = {}
    found = 0
    part, parts = share
    indices = range(part * len(dataset) // parts, (part + 1) * len(dataset) // parts)
    for index in indices:
        try:
            sample = _read(dataset, Request(index, position=index, seed=0))
        except BadSample as error:
            if dataset.on_bad_file == "error":
                raise _with_hint(error) from error
            bad[error.path] = error.reason
            continue
        found += 1
        alike = _likeness(sample)
        waiting.setdefault(alike, []).append((index, sample))
        if len(waiting[alike]) == batch_size:
            yield _evaluation_batch(dataset, waiting.pop(alike))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield _evaluation_batch(dataset, waiting.pop(max(waiting, key=lambda key: len(waiting[key]))))
    for samples in waiting.values():
        yield _evaluation_batch(dataset, samples)
    if found == 0 and (indices or parts == 1):
        raise DataError(_all_bad(dataset, bad))


def _likeness(sample: Sample) -> tuple[Any, ...]:
    return tuple((key, (v.shape, v.dtype) if isinstance(v, Tensor) else type(v)) for key, v in sorted(sample.items()))


def _evaluation_batch(dataset: Dataset, samples: list[tuple[int, Sample]]) -> Batch:
    indices = [index for index, _ in samples]
    return _collate(dataset, [sample for _, sample in samples], indices, indices)


class _Fetched(NamedTuple):
    """What comes back for one batch. A user's error travels as a value, since pickled tracebacks hide its message."""

    batch: Batch
    bad_files: dict[str, str]
    error: DataError | None = None


class _Crew(TorchDataset[_Fetched]):
    """The dataset as the workers see it, and a shared note of what each of them is reading, for when one dies."""

    def __init__(self, dataset: Dataset, n_workers: int) -> None:
        self.dataset = dataset
        self.reading = torch.full((n_workers, 2), -1, dtype=torch.int64).share_memory_()  # process id, index

    def start_worker(self, worker: int) -> None:
        # Requests to stop are for the main process, which saves and then ends the workers.
        for name in ("SIGINT", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has not both
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        self.reading[worker, 0] = multiprocessing.current_process().pid

    def __getitem__(self, requests: list[Request]) -> _Fetched:
        info = get_worker_info()
        assert info is not None

        def note(index: int) -> None:
            self.reading[info.id, 1] = index

        try:
            return _fetch(self.dataset, requests, note)
        except BadSample as error:
            return _Fetched({}, {}, error)
        except UserError as error:  # other kinds need not survive pickling
            return _Fetched({}, {}, DataError(str(error)))

    def files(self) -> list[str]:
        """What each worker reads, or has read last."""
        noted = [(pid, index) for pid, index in self.reading.tolist() if pid >= 0 and index >= 0]
        return [f"{self.dataset.source(index)} (worker process {pid})" for pid, index in noted]

    def death(self) -> str | None:
        """What happened, if a worker is dead."""
        alive = {child.pid for child in multiprocessing.active_children()}
        dead = [index for pid, index in self.reading.tolist() if pid >= 0 and pid not in alive]
        if not dead:
            return None
        files = ", ".join(self.dataset.source(index) for index in dead if index >= 0) or "before its first sample"
        return (
            f"{len(dead)} of {len(self.reading)} data worker processes died; last read: {files}. A worker is killed when "
            "memory (or /dev/shm) runs out: use fewer n_workers or a smaller prefetch_factor. If always at this file, remove it"
        )


def _fetch(dataset: Dataset, requests: Sequence[Request], note: Callable[[int], None] | None = None) -> _Fetched:
    samples, indices, bad_files = [], [], {}
    for request in requests:
        for candidate in _candidates(dataset, request):
            if note is not None:
                note(candidate.index)
            try:
                samples.append(_read(dataset, candidate))
            except BadSample as error:
                if dataset.on_bad_file == "error":
                    raise _with_hint(error) from error
                bad_files[error.path] = error.reason
                continue
            indices.append(candidate.index)
            break
        else:
            raise DataError(_all_bad(dataset, bad_files))
    return _Fetched(_collate(dataset, samples, indices, [request.position for request in requests]), bad_files)


def _candidates(dataset: Dataset, request: Request) -> Iterator[Request]:
    """The request, then its replacements: the next indices, as long as the files are bad. The randomness stays the same."""
    yield request
    for step in range(1, len(dataset)):
        yield replace(request, index=(request.index + step) % len(dataset))


def _read(dataset: Dataset, request: Request) -> Sample:
    try:
        return dataset[request]
    except UserError:
        raise
    except Exception as error:  # a fault of the program: keep its kind and trace, and say which file brought it out
        error.add_note(f"while reading {dataset.source(request.index)} ({request})")
        raise


def _collate(dataset: Dataset, samples: list[Sample], indices: list[int], positions: list[int]) -> Batch:
    batch = dataset.collate(samples, [dataset.source(index) for index in indices])
    if "positions" in batch:
        raise ValueError(f"{type(dataset).__name__} gives a key 'positions', which the loader writes; name it otherwise")
    return {**batch, "positions": positions}


def _with_hint(error: BadSample) -> BadSample:
    return BadSample(error.path, f"{error.reason} (`on_bad_file: skip` leaves such files out)")


def _all_bad(dataset: Dataset, bad_files: Mapping[str, str]) -> str:
    example = BadSample(*next(iter(bad_files.items())))
    return f"all {len(dataset)} samples of the dataset are unusable, for example {example}; mend the files or the paths"


def _unchanged(fetched: _Fetched) -> _Fetched:
    return fetched


def _pin(fetched: _Fetched) -> _Fetched:
    pinned = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in fetched.batch.items()}
    return fetched._replace(batch=pinned)


@contextmanager
def _without_child_signal_handler() -> Iterator[None]:
    """Undoes PyTorch's handler that raises the moment a worker dies, in whatever line the main program happens to be.

    That line may be writing a checkpoint. Without the handler the death is found when the next batch is awaited.
    """
    if threading.current_thread() is not threading.main_thread():  # there PyTorch sets no handler either
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
