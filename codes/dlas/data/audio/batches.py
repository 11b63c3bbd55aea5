"""Batches of samples that differ in length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dlas.data.base import Sample, stack_samples


def pad_to_longest(samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
    """A batch whose tensors are filled up with zeros to the longest of each dimension, and otherwise stacked.

    Args:
        samples: dicts with the same keys; tensors under a key have as many dimensions.
        sources: names of the samples, for messages.

    Raises:
        DataError: the samples do not fit together.
    """
    longest: dict[str, list[int]] = {}
    for sample in samples:
        for key, value in sample.items():
            if isinstance(value, Tensor):
                known = longest.setdefault(key, list(value.shape))
                longest[key] = [max(sizes) for sizes in zip(known, value.shape, strict=False)]
    return stack_samples([_padded(sample, longest) for sample in samples], sources)


def pad_to(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """A tensor with zeros behind the end of each of its dimensions, of so many entries."""
    if list(tensor.shape) == list(sizes):
        return tensor
    missing = [most - size for size, most in zip(tensor.shape, sizes, strict=True)]
    return F.pad(tensor, [n for each in reversed(missing) for n in (0, each)])


def _padded(sample: Sample, longest: dict[str, list[int]]) -> Sample:
    return {
        key: pad_to(value, longest[key]) if isinstance(value, Tensor) and value.dim() == len(longest[key]) else value
        for key, value in sample.items()
    }
