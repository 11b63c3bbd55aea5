"""A training batch of which only shapes and types are real."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dlas.config import Config
from dlas.data.base import Dataset, Request, Sample, TensorSpec, stack_samples
from dlas.engine.build import build_dataset
from dlas.engine.options import with_scale
from dlas.registry import DATASETS


def fake_batch(config: Config, mode: FakeTensorMode) -> dict[str, Any]:
    """The first batch of the training set, with `positions`, as the loader gives it.

    The data are not opened if the data set can tell its samples from its options; otherwise one sample is read.

    Raises:
        ConfigurationError: the data set's options contradict each other.
        DataError: a sample has to be read, and the data are missing or unusable.
    """
    size = config.datasets["train"].batch_size
    sample = _told(config) or _read(config)
    with mode:
        samples = [_fake(sample.values)] * size
        batch = sample.collate(samples, [f"sample {index}" for index in range(size)])
    return {**batch, "positions": list(range(size))}


@dataclass(frozen=True)
class _Collatable:
    """A sample and the way in which its data set puts samples together."""

    values: Sample
    collate: Callable[[Sequence[Sample], Sequence[str]], dict[str, Any]]


def _told(config: Config) -> _Collatable | None:
    section = config.datasets["train"]
    entry = DATASETS.find(section.mode)
    cls = DATASETS.get(section.mode)
    collate = _collate_without_instance(cls)
    if collate is None:
        return None
    sample = cls.sample_spec("train", entry.arguments(with_scale(section, config.scale)))
    return _Collatable(sample, collate) if sample is not None else None


def _collate_without_instance(cls: type[Dataset]) -> Any:
    found = inspect.getattr_static(cls, "collate")
    if found is Dataset.__dict__["collate"]:
        return stack_samples
    return cls.collate if isinstance(found, staticmethod | classmethod) else None


def _read(config: Config) -> _Collatable:
    dataset = build_dataset(config, "train")
    return _Collatable(dataset[Request(0, 0, config.seed)], dataset.collate)


def _fake(sample: Sample) -> Sample:
    return {key: _fake_value(value) for key, value in sample.items()}


def _fake_value(value: Any) -> Any:
    if isinstance(value, TensorSpec | Tensor):
        return torch.empty(tuple(value.shape), dtype=value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(_fake_value(item) for item in value)
    return value
