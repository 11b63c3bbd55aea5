"""Cutting a batch into micro-batches whose gradients add up to those of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlas.host import unattended


@dataclass
class MicroBatch:
    """Part of a batch.

    Args:
        state: the entries of this part; injectors add to it.
        share: its share of the batch. Losses are means, so weighting each part's loss by its share gives the mean over the
            batch, for uneven parts too.
        positions: place of each sample in the run's endless sample order.
    """

    state: dict[str, Any]
    share: float
    positions: list[int]

    def cut(self, parts: int) -> list[MicroBatch]:
        """Cuts it into `parts` pieces whose sizes differ by at most one.

        Tensors whose first dimension is the number of samples and lists with one entry per sample are cut, those in mappings,
        tuples and other lists too; anything else belongs to every piece.
        """
        if parts == 1:
            return [self]
        total = len(self.positions)
        base, extra = divmod(total, parts)
        result, start = [], 0
        for part in range(parts):
            end = start + base + (part < extra)
            state = {key: _cut(value, total, start, end) for key, value in self.state.items()}
            result.append(MicroBatch(state, self.share * ((end - start) / total), self.positions[start:end]))
            start = end
        return result


def split_batch(batch: dict[str, Any], positions: list[int], parts: int) -> list[MicroBatch]:
    """Cuts a batch along dimension 0 into `parts` pieces whose sizes differ by at most one."""
    return MicroBatch(batch, 1.0, positions).cut(parts)


def join(parts: Sequence[MicroBatch]) -> MicroBatch:
    """The batch that `MicroBatch.cut` has cut into these pieces; what is not one entry a sample is that of the first."""
    sizes = [len(part.positions) for part in parts]
    state = {key: _join([part.state[key] for part in parts], sizes) for key in parts[0].state}
    return MicroBatch(state, sum(part.share for part in parts), [place for part in parts for place in part.positions])


def _join(values: list[Any], sizes: list[int]) -> Any:
    first = values[0]
    if all(value is first for value in values):
        return first
    if isinstance(first, Tensor):
        cut = all(value.dim() > 0 and len(value) == size for value, size in zip(values, sizes, strict=True))
        return torch.cat(values) if cut else first
    if isinstance(first, list) and all(len(value) == size for value, size in zip(values, sizes, strict=True)):
        return [item for value in values for item in value]
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values], sizes) for key in first}
    if isinstance(first, list) or type(first) is tuple:
        joined = [_join(list(items), sizes) for items in zip(*values, strict=True)]
        return joined if isinstance(first, list) else tuple(joined)
    return first


def _cut(value: Any, total: int, start: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:end] if value.dim() > 0 and value.shape[0] == total else value
    if isinstance(value, list) and len(value) == total:
        return value[start:end]
    if isinstance(value, dict):
        return {key: _cut(item, total, start, end) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, total, start, end) for item in value]
    if type(value) is tuple:
        return tuple(_cut(item, total, start, end) for item in value)
    return value


def to_device(batch: dict[str, Any], device: torch.device, layout: torch.memory_format) -> dict[str, Any]:
    """Moves a batch's tensors; images (4-D) take the memory format. Copies from pinned memory do not block."""
    result = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            if device.type != "cpu":
                value = value.to(device, non_blocking=unattended(device))
            if value.dim() == 4 and layout is torch.channels_last:
                value = value.contiguous(memory_format=layout)
        result[key] = value
    return result
