"""What a dataset is: a map from a request to a dict of tensors and strings, with all randomness addressed by the request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlas.context import mix_seed
from dlas.data.inventory import Inventory
from dlas.data.shards.folder import shard_of
from dlas.errors import ConfigurationError, DataError, printable
from dlas.registry import DATASETS

if TYPE_CHECKING:
    from dlas.data.images.pairs import Kept

Sample = dict[str, Any]

LOADER_KEYS = frozenset({"mode", "name", "batch_size", "n_workers", "pin_memory", "prefetch_factor"})
"""Keys of an entry of `datasets` in YAML that are for the loader and the engine, not for the dataset."""


class BadSample(DataError):  # noqa: N818  # it is the sample that is bad; the policy may well be to go on
    """One file of a dataset is unusable. The policy `on_bad_file` decides whether that ends the run.

    Args:
        path: the file.
        reason: what was found, what was expected and what to do about it.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both as arguments, so that the error survives the way out of a worker process
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Request:
    """Asks a dataset for one sample.

    Args:
        index: which item of the dataset, in [0, length).
        position: place in the run's endless sample order; no two samples of a run share one.
        seed: seed of the run.
    """

    index: int
    position: int
    seed: int

    def rng(self, stream: str = "sample") -> np.random.Generator:
        """Randomness that depends on (seed, position, stream) alone: the same after a resume and in any worker.

        Independent stages of a pipeline (say, crop and degradation) take different streams, so that changing one leaves
        the draws of the other as they were.
        """
        return np.random.default_rng(mix_seed(self.seed, self.position, stream))


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of a tensor that need not exist."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Buckets:
    """What batches of samples of about one length are put together by.

    Args:
        lengths: of the items, in any unit.
        batches: so many at a time are put together: more are more alike inside, and less random.
        budget: most that a batch holds, padding included: the longest of its lengths times its samples. None: batches have
            as many samples as the run says, which is otherwise the most that they have.
    """

    lengths: Sequence[float]
    batches: int
    budget: float | None = None


class Dataset:
    """A map-style dataset. Reading the same request twice gives the same sample.

    A subclass defines `__len__` and `__getitem__`; one that reads files raises `BadSample` for an unusable one, takes the
    option `on_bad_file` and overrides `source`.
    """

    provides: tuple[str, ...] = ()
    """The keys of a sample, as a literal in each registered class: the checker reads them from the source text."""

    passes_on: str = ""
    """Name of the option with another data set whose keys the samples have, too; read likewise."""

    on_bad_file: Literal["error", "skip"] = "error"

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        """What a sample looks like, told from the options alone, so that a run can be checked where its data are not.

        Args:
            phase: as for the constructor.
            options: all of its options, defaults filled in.

        Returns:
            A sample with a `TensorSpec` in place of each tensor and examples of all other entries; for samples that differ in
            size, the largest one. None where only the data can tell; then one sample is read. A subclass with a `collate` of
            its own makes it a static or class method if its samples are to be told so: there is no instance.

        Raises:
            ConfigurationError: the options contradict each other.
        """
        return None

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory | None:
        """The files that the data set would read, for `dlas data audit`. No file is opened.

        Args:
            phase: as for the constructor.
            options: all of its options, defaults filled in.

        Returns:
            The files; None for a data set that has no image files, or does not tell.

        Raises:
            ConfigurationError: the options contradict each other.
            DataError: a folder is missing or empty.
        """
        return None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, request: Request) -> Sample:
        """Tensors of any rank, numbers, strings, by name.

        Raises:
            BadSample: the file behind this sample is unusable.
        """
        raise NotImplementedError

    def source(self, index: int) -> str:
        """What to call an item in a message: for most datasets, its file."""
        return f"sample {index}"

    def identity(self, index: int) -> str:
        """Changes when what an item is made of does: its name and, of a file, size and time of change."""
        name = self.source(index)
        try:
            status = os.stat(shard_of(name) or name)  # noqa: PTH116  # the name need not be that of a file
        except (OSError, ValueError):
            return name
        return f"{name} {status.st_size} {status.st_mtime_ns}"

    def prepare(self) -> None:
        """Called once before worker processes start: loads what they should share instead of loading one copy each."""

    def kept_images(self) -> Kept | None:
        """What `dlas data prepare` puts into the mapped cache ahead of the first epoch; None for a data set without one."""
        return None

    def buckets(self) -> Buckets | None:
        """Puts batches of about one length together in training; None: they are as random as can be."""
        return None

    def made_with(self) -> Mapping[str, str]:
        """Networks whose outputs the samples are, by name, with the fingerprint of their weights; none for plain data."""
        return {}

    def collate(self, samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
        """Makes one batch of samples. The default stacks; a dataset of samples with lengths overrides it (and pads)."""
        return stack_samples(samples, sources)


def stack_samples(samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
    """A batch: tensors stacked along a new first dimension, numbers as one tensor, anything else as a list.

    Args:
        samples: dicts with the same keys, and tensors of the same shape under each.
        sources: the name of each sample for error messages.

    Raises:
        DataError: the samples do not fit together.
    """
    first = samples[0]
    for sample, source in zip(samples, sources, strict=True):
        if sample.keys() != first.keys():
            raise DataError(
                f"samples of one batch have different keys: {sources[0]} has {sorted(first)}, {source} has {sorted(sample)}; "
                "a dataset must give the same keys for every sample"
            )
    return {key: _stack(key, [sample[key] for sample in samples], sources) for key in first}


def _stack(key: str, values: list[Any], sources: Sequence[str]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        for value, source in zip(values, sources, strict=True):
            if value.shape != first.shape or value.dtype != first.dtype:
                raise DataError(
                    f"'{key}' cannot be stacked into a batch: {_describe(first)} from {sources[0]}, {_describe(value)} from "
                    f"{source}; make the samples one size (for images: target_size) or use batch_size: 1"
                )
        return torch.stack(values)
    if isinstance(first, bool | int | float):
        return torch.tensor(values)
    return values


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def create_dataset(options: Mapping[str, Any], *, phase: str, name: str) -> Dataset:
    """Builds the dataset of one entry of `datasets` in YAML.

    Args:
        options: the entry; `mode` names the dataset, keys of the loader are ignored.
        phase: "train", or anything else for evaluation.
        name: key of the entry, for messages.

    Raises:
        ConfigurationError: `mode` is missing or unknown, or an option is wrong.
        DataError: the data are missing or unusable.
    """
    where = f"datasets.{name}"
    if "mode" not in options:
        raise ConfigurationError(f"{where} has no `mode`; expected one of: {', '.join(DATASETS.entries())}")
    try:
        dataset: Dataset = DATASETS.create(
            options["mode"], {key: value for key, value in options.items() if key not in LOADER_KEYS}, phase
        )
        if len(dataset) == 0:
            raise DataError("the dataset has no samples; check the paths it reads")
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    except DataError as error:
        raise DataError(f"{where} (mode {options['mode']}, phase {phase}): {error}") from error
    return dataset
